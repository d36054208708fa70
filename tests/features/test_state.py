"""The state of a backbone goes to disk and back, under the names of the module without wrappers."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro.features.state import fill, stored_state, unwrapped

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + 0.1 * torch.randn(30, generator=torch.Generator().manual_seed(1))
LAYER = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())


class Holding(nn.Linear):
    """A linear layer with extra state."""

    def __init__(self, extra: Any) -> None:
        super().__init__(4, 3)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


class Own(nn.Module):
    """A module of the user's that is no wrapper, although its part is named like one."""

    def __init__(self) -> None:
        super().__init__()
        self.module = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


WRAPPERS = {
    "plain": lambda net: net,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(compiled(net)),
    "compiled twice": lambda net: compiled(nn.DataParallel(net)),
}


@pytest.mark.parametrize("saved", WRAPPERS)
def test_wrappers_leave_no_trace_in_the_names(tmp_path: Path, saved: str) -> None:
    """A fit with any wrapper loads into the plain module and into a module in any wrapper."""
    from safetensors.torch import load_file

    backbone = WRAPPERS[saved](network())
    fit = bll.fit(LAYER, (X, Y), backbone, bll.Exact())
    expected = fit.predict(X).mean
    fit.save(tmp_path)
    (file,) = tmp_path.glob("backbone-*")
    assert load_file(file).keys() == network().state_dict().keys()
    for wrap in WRAPPERS.values():
        again = bll.load(tmp_path, backbone=wrap(network(1)))
        torch.testing.assert_close(again.predict(X).mean, expected)
    with pytest.raises(ValueError, match="saved with a Sequential"):
        bll.load(tmp_path)


def test_wrapped_parts_and_names_that_only_look_like_wrappers() -> None:
    inside = nn.Sequential(OrderedDict(first=compiled(network()), second=nn.DataParallel(nn.Linear(5, 2))))
    plain = nn.Sequential(OrderedDict(first=network(1), second=nn.Linear(5, 2)))
    tensors, extra = stored_state(inside)
    assert tensors.keys() == plain.state_dict().keys() and not extra
    fill(plain, tensors, extra)
    torch.testing.assert_close(plain.eval()(X), inside.eval()(X))
    fill(inside, *stored_state(plain))
    assert stored_state(Own())[0].keys() == {f"module.{name}" for name in network().state_dict()}
    own = Own()
    assert unwrapped(own) is own and unwrapped(nn.DataParallel(compiled(own))) is own


@pytest.mark.parametrize("saved", WRAPPERS)
def test_states_of_earlier_versions_have_wrappers_in_their_names(saved: str) -> None:
    earlier = dict(WRAPPERS[saved](network()).state_dict())
    for wrap in WRAPPERS.values():
        made = wrap(network(1))
        fill(made, earlier, {})
        torch.testing.assert_close(unwrapped(made).eval()(X), network().eval()(X))
    fill(own := Own(), dict(Own().state_dict()), {})
    with pytest.raises(ValueError, match="saved architecture"):
        fill(own, {"module.other": X}, {})


def test_stored_features_are_found_through_a_wrapper(tmp_path: Path) -> None:
    paths = {bll.extract(wrap(network()), X, store=tmp_path).path for wrap in WRAPPERS.values()}
    assert len(paths) == 1


def test_a_timm_backbone_in_a_wrapper_is_rebuilt(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = bll.timm_backbone("resnet10t", channels=(4, 4, 4, 4), stem_width=4)
    fit = bll.fit(LAYER, (images, images.mean((1, 2, 3))), nn.DataParallel(net), bll.Exact())
    fit.save(tmp_path)
    again = bll.load(tmp_path)
    assert type(again.backbone) is type(net)
    torch.testing.assert_close(again.predict(images).mean, fit.predict(images).mean)


@pytest.mark.parametrize(
    "extra",
    [
        None,
        torch.arange(3.0),
        {"steps": 3, "rate": 0.1, "names": ["a", "b"], "shape": (1, 2), "moments": {"mean": torch.ones(2)}},
        "text",
    ],
)
def test_extra_state_of_plain_data_comes_back(tmp_path: Path, extra: Any) -> None:
    fit = bll.fit(LAYER, (X, Y), nn.Sequential(Holding(extra)), bll.Exact())
    fit.save(tmp_path)
    again = bll.load(tmp_path, backbone=nn.Sequential(Holding("before"))).backbone
    assert isinstance(again, nn.Sequential) and isinstance(again[0], Holding)
    assert repr(again[0].extra) == repr(extra)


class Nested(Tensor):
    """A tensor that computes in its own way."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]  # detach


def with_buffer(tensor: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_buffer("special", tensor)
    return module


REFUSED = {
    "object": (lambda: nn.Sequential(Holding({"a": [object()]})), "got a object in '0._extra_state'"),
    "array": (lambda: nn.Sequential(Holding(X.numpy())), "got a ndarray in '0._extra_state'"),
    "numbers as keys": (lambda: nn.Sequential(Holding({1: 2})), "got a dict in '0._extra_state'"),
    "sparse": (lambda: with_buffer(torch.eye(3).to_sparse()), "a sparse tensor '0.special'"),
    "complex": (
        lambda: with_buffer(torch.eye(3).to(torch.complex128)),
        "a tensor of torch.complex128 '0.spec",
    ),
    "meta": (lambda: with_buffer(torch.empty(3, device="meta")), "a tensor without values '0.special'"),
    "lazy": (lambda: nn.LazyLinear(3), "a tensor without values 'weight'"),
    "own class": (
        lambda: with_buffer(torch.Tensor._make_subclass(Nested, torch.ones(2))),
        "special tensor '0.spec",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_what_cannot_be_stored_is_named_before_anything_is_written(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    fit = bll.fit(LAYER, (X, Y), inference=bll.Exact())
    whole = type(fit)(
        **{name: getattr(fit, name) for name in fit.__dataclass_fields__} | {"backbone": make()}
    )
    with pytest.raises(ValueError, match=message) as caught:
        whole.save(tmp_path / "model")
    assert "fit.head.save(...)" in str(caught.value)
    assert not list(tmp_path.iterdir())
    whole.head.save(tmp_path / "model")


@pytest.mark.filterwarnings("ignore")  # torch's own, of quantisation to come in another library
def test_a_quantised_backbone(tmp_path: Path) -> None:
    net = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)
    fit = bll.fit(LAYER, (X, Y), net, bll.Exact())
    with pytest.raises(ValueError, match=r"got a .* in '0._packed_params"):
        fit.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    """torch copies what fits before it complains of the rest."""
    fit = bll.fit(LAYER, (X, Y), network(), bll.Exact())
    fit.save(tmp_path)
    other = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(6), nn.Tanh())
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="saved architecture"):
        bll.load(tmp_path, backbone=other)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
