"""``split_last_layer``: both parts give what the network gives, and the network stays as it is."""

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bll_pyro as bll
from bll_pyro.features.extraction import features_key
from bll_pyro.scope import generator, isolated

plain_fit = partial(bll.fit, calibration=None)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0))


def seeded[Made](make: Callable[[], Made]) -> Made:
    with isolated(0):
        return make()


class Own(nn.Module):
    """A forward that functions end; the last layer is not registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.head(functional.relu(self.norm(self.body(x)))), training=self.training)


def sequential(*more: nn.Module) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3), *more))


def torchvision_network(name: str) -> nn.Module:
    """Of torchvision's classes, small where they can be."""
    from torchvision import models
    from torchvision.models.convnext import CNBlockConfig

    small: dict[str, Callable[[], nn.Module]] = {
        "resnet18": partial(models.resnet18, num_classes=5),
        "mobilenet_v3_small": partial(models.mobilenet_v3_small, num_classes=5),
        "vit": partial(
            models.VisionTransformer,
            32,
            16,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=5,
        ),
        "swin": partial(models.SwinTransformer, [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5),
        "convnext": partial(
            models.ConvNeXt, [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5
        ),
    }
    network = seeded(small[name])
    if name == "vit":
        nn.init.normal_(network.heads.head.weight)  # it begins at 0, where every split agrees
    return network


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit", "swin", "convnext"])
def test_torchvision_bit_for_bit(name: str) -> None:
    network, images = torchvision_network(name), rows(2, 3, 32, 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    parts = [bll.split_last_layer(network), bll.split_last_layer(network, images)]
    assert all(part.training for part in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        whole = network(images)
        for backbone, head in parts:
            features = backbone.eval()(images)
            assert features.shape == (2, head.in_features) and head.out_features == 5
            assert torch.equal(head(features), whole)


@pytest.mark.parametrize("by_example", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        sequential,
        lambda: sequential(nn.Dropout(), nn.Identity()),
        lambda: seeded(Own),
        lambda: nn.Sequential(nn.Flatten(), seeded(Own)),
        lambda: seeded(lambda: nn.Linear(4, 3)),
        lambda: nn.DataParallel(seeded(Own)),
    ],
    ids=["sequential", "dropout after", "own", "nested", "linear alone", "parallel"],
)
def test_forms_of_networks(make: Callable[[], nn.Module], by_example: bool) -> None:
    network, x = make(), rows(5, 4)
    backbone, head = bll.split_last_layer(network, x if by_example else None)
    network.eval(), backbone.eval()
    assert torch.equal(head(backbone(x)), network(x))


def test_parts_share_memory_and_nothing_else() -> None:
    network = seeded(Own).train()
    for parameter in network.body.parameters():
        parameter.requires_grad_(False)
    backbone, head = bll.split_last_layer(network, rows(5, 4))
    assert not any(part._forward_hooks for part in [*network.modules(), *backbone.modules(), head])
    ours = dict(network.named_parameters())
    for name, parameter in backbone.named_parameters():
        assert parameter is not ours[name] and parameter.data_ptr() == ours[name].data_ptr()
        assert parameter.requires_grad == ours[name].requires_grad
    assert head.weight.data_ptr() == network.head.weight.data_ptr()
    assert not {id(part) for part in network.modules()} & {id(part) for part in [*backbone.modules(), head]}
    backbone.eval().requires_grad_(False).double()
    assert (
        network.training and network.head.weight.requires_grad and network.body.weight.dtype == torch.float32
    )
    with torch.no_grad():
        network.head.weight.mul_(2.0)
    assert torch.equal(head.weight, network.head.weight)


def test_a_tied_weight_stays_tied_and_a_bound_forward_is_that_of_the_backbone() -> None:
    network = seeded(Own)
    network.again = network.body
    network.forward = partial(type(network).forward, network)  # as libraries that place weights on devices do
    backbone, head = bll.split_last_layer(network, rows(5, 4))
    assert backbone.again is backbone.body
    network.eval(), backbone.eval()
    assert torch.equal(head(backbone(rows(5, 4))), network(rows(5, 4)))
    assert backbone(rows(5, 4)).shape == (5, 6)


def test_backbone_is_copied_pickled_and_its_key_moves_with_the_weights() -> None:
    network = seeded(Own).eval()
    backbone, _ = bll.split_last_layer(network)
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    x, key = rows(5, 4), features_key(backbone, "rows", None)
    for again in (copy.deepcopy(backbone), torch.load(file, weights_only=False)):
        assert torch.equal(again(x), backbone(x))
        assert features_key(again, "rows", None) == key
    assert features_key(bll.split_last_layer(network)[0], "rows", None) == key
    with torch.no_grad():
        network.head.weight.add_(1.0)  # is not in the backbone
    assert features_key(backbone, "rows", None) == key
    with torch.no_grad():
        network.body.weight.add_(1.0)
    assert features_key(backbone, "rows", None) != key


@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
def test_a_fit_on_the_backbone_is_saved_loaded_and_trained_along(tmp_path: Path) -> None:
    network, x = seeded(Own), rows(40, 4)
    labels = network.eval()(x).argmax(1)
    backbone, _ = bll.split_last_layer(network)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    fit = plain_fit(layer, (x, labels), backbone)
    fit.save(tmp_path / "fit")
    again = bll.load(tmp_path / "fit", backbone=bll.split_last_layer(seeded(Own))[0])
    assert torch.equal(again.predict(x).probs, fit.predict(x).probs)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    joint = bll.SVI(backbone_learning_rate=1e-2, num_epochs=2)
    with pytest.warns(bll.FitWarning, match="no rows were kept"):
        trained = plain_fit(layer, (x, labels), backbone, joint)
    assert not torch.equal(trained.backbone.body.weight, backbone.body.weight)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Record(nn.Module):
    """As models for text are: arguments by name, logits in a record, and more tokens than one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.score = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        last = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).sum(1) - 1
        logits = self.score(self.tokens(input_ids))
        return SimpleNamespace(loss=None, logits=logits[torch.arange(len(last)), last])


def test_arguments_by_name_and_logits_in_a_record() -> None:
    """The last layer runs on all tokens, and one of them is chosen after it: other sizes of one product, so rounding may differ."""
    network = seeded(Record).eval()
    batch = {
        "input_ids": torch.randint(0, 20, (4, 7), generator=generator(0)),
        "attention_mask": (torch.arange(7) < torch.tensor([[7], [3], [5], [1]])).long(),
    }
    backbone, head = bll.split_last_layer(network, batch)
    torch.testing.assert_close(head(backbone(batch)), network(**batch).logits, rtol=1e-6, atol=1e-6)
    alone = bll.split_last_layer(network, batch["input_ids"])[0]
    expected = network(batch["input_ids"]).logits
    torch.testing.assert_close(head(alone(batch["input_ids"])), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy.deepcopy(backbone)(batch), backbone(batch))
    with pytest.raises(ValueError, match="pass example="):
        bll.split_last_layer(network)


# ---- what cannot be split


class Ends(nn.Module):
    """Two layers, and a forward that is given."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.ends = forward

    def forward(self, x: Tensor) -> object:
        return self.ends(self, x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "softmax": (lambda: sequential(nn.Softmax(-1)), "(?i)ends with (a )?softmax"),
    "log-softmax": (
        lambda: Ends(lambda n, x: n.head(n.body(x)).log_softmax(-1)),
        "(?i)ends with (a )?log.softmax",
    ),
    "activation": (
        lambda: Ends(lambda n, x: functional.relu(n.head(n.body(x)))),
        "relu|something follows 'head'",
    ),
    "scaled": (lambda: Ends(lambda n, x: 3 * n.head(n.body(x))), "mul|something follows 'head'"),
    "two heads": (lambda: Ends(lambda n, x: (n.head(x), n.other(x))), "several"),
    "mean of heads": (lambda: Ends(lambda n, x: (n.head(x) + n.other(x)) / 2), "truediv|beside it"),
    "used twice": (lambda: Ends(lambda n, x: n.head(torch.relu(n.head(x)))), "runs 2 times"),
    "no linear": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten()), "Conv1d|no Linear runs"),
    "functional": (
        lambda: Ends(lambda n, x: functional.linear(n.body(x), n.head.weight)),
        "linear|something follows",
    ),
}


@pytest.mark.parametrize("by_example", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, by_example: bool) -> None:
    make, said = REFUSED[name]
    network = seeded(make)
    x = rows(3, 4, 1) if name == "no linear" else rows(3, 4)
    with pytest.raises(ValueError, match=said) as caught:
        bll.split_last_layer(network, x if by_example else None)
    assert "LastLayer.from_linear" in str(caught.value)
    assert network.training and not any(part._forward_hooks for part in network.modules())


def test_a_forward_that_depends_on_values_needs_an_example() -> None:
    network = seeded(lambda: Ends(lambda n, x: n.head(n.body(x) if x.sum() > 1e9 else x)))
    with pytest.raises(ValueError, match="pass example="):
        bll.split_last_layer(network)
    backbone, head = bll.split_last_layer(network, rows(3, 4))
    assert torch.equal(head(backbone(rows(3, 4))), network(rows(3, 4)))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_what_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got function"):
        bll.split_last_layer(lambda x: x)
    with pytest.raises(TypeError, match="got TorchScript"):
        bll.split_last_layer(torch.jit.script(sequential()))
    with pytest.raises(ValueError, match="lazy module '0'"):
        bll.split_last_layer(nn.Sequential(nn.LazyLinear(3)))
