"""Layers and their rates, and what of a backbone decays."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro.inference.svi.parameter_groups import backbone_groups, layer_numbers


class Encoder(nn.Module):
    """As in transformers: an embedding, a module whose only part is a list of blocks, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.embedding = nn.Linear(6, 4)
        self.blocks = nn.Module()
        self.blocks.layer = nn.ModuleList(nn.ModuleDict({"one": nn.Linear(4, 4)}) for _ in range(2))
        self.blocks.layer[1] = Block()
        self.norm = nn.LayerNorm(4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def by_layer(net: nn.Module) -> list[set[str]]:
    numbers = layer_numbers(net)
    assert numbers.keys() == dict(net.named_parameters()).keys()
    return [
        {name for name, n in numbers.items() if n == number} for number in range(max(numbers.values()) + 1)
    ]


def test_layers_of_any_module_are_its_parts_in_order() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
    )
    assert by_layer(net) == [
        {"0.weight", "0.bias", "1.weight", "1.bias"},
        {"3.0.weight", "3.0.bias"},
        {"3.2.weight", "3.2.bias"},
    ]


@pytest.mark.parametrize(
    "wrap", [lambda net: net, nn.DataParallel, lambda net: nn.Sequential(net, nn.ReLU())]
)
def test_blocks_of_a_list_inside_a_part_are_layers(wrap: object) -> None:
    net = wrap(Encoder())  # type: ignore[operator]
    found = [{name.removeprefix("module.").removeprefix("0.") for name in layer} for layer in by_layer(net)]
    assert found == [
        {"embedding.weight", "embedding.bias", "token"},
        {"blocks.layer.0.one.weight", "blocks.layer.0.one.bias"},
        {f"blocks.layer.1.{part}.{kind}" for part in ("first", "second") for kind in ("weight", "bias")}
        | {"norm.weight", "norm.bias"},
    ]


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_rates_and_decays_are_those_of_timm(name: str) -> None:
    """Up to one factor: timm gives its full rate to a head that a backbone does not have."""
    with torch.random.fork_rng():
        backbone = bll.timm_backbone(name)
    ours = {
        id(p): (group["lr"], group["weight_decay"])
        for group in backbone_groups(backbone, 1.0, layer_decay=0.75, weight_decay=0.05)
        for p in group["params"]
    }
    plain = backbone.model.no_weight_decay() if name == "test_vit" else ()
    groups = param_groups_layer_decay(backbone.model, 0.05, plain, layer_decay=0.75)
    theirs = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert ours.keys() == theirs.keys() == {id(p) for p in backbone.parameters()}
    factors = {round(ours[key][0] / theirs[key][0], 9) for key in ours}
    assert len(factors) == 1 and max(rate for rate, _ in ours.values()) == 1.0
    assert {key: decay for key, (_, decay) in ours.items()} == {
        key: decay for key, (_, decay) in theirs.items()
    }


def test_what_does_not_decay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((4, 2)), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1))
    decayed = {
        id(p) for g in backbone_groups(net, 0.1, weight_decay=0.01) if g["weight_decay"] for p in g["params"]
    }
    assert decayed == {id(net[0].weight), id(net[3].weight)}


def test_frozen_parameters_are_in_no_group_and_layers_count_all() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    net[:2].requires_grad_(False)
    groups = backbone_groups(net, 0.1, layer_decay=0.5)
    assert [group["lr"] for group in groups] == [0.05, 0.1]
    assert [id(p) for group in groups for p in group["params"]] == [
        id(p) for part in net[2:] for p in part.parameters()
    ]


def test_without_options_there_is_one_group() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ((group),) = backbone_groups(net, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.0)


def test_timm_is_found_inside_a_compiled_network() -> None:
    with torch.random.fork_rng():
        net: nn.Module = timm.create_model("test_vit", num_classes=0)
    plain = layer_numbers(net)
    compiled: nn.Module = torch.compile(net, backend="eager")  # type: ignore[assignment]
    assert layer_numbers(compiled) == {f"_orig_mod.{name}": number for name, number in plain.items()}
    assert max(plain.values()) > 2 and isinstance(next(net.parameters()), Tensor)
