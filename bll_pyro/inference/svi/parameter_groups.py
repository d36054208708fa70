"""Parameter groups of a backbone: layers, from the input on, each with its rate, and what of them decays."""

from __future__ import annotations

from typing import Any

from torch import nn

LISTS = (nn.ModuleList, nn.ModuleDict)
CONTAINERS = (nn.Sequential, *LISTS)  # themselves: a subclass is a layer of its own
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def backbone_groups(
    backbone: nn.Module, rate: float, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, as an optimizer takes them, those near the input first.

    Layer l of 0 .. L has the rate ``rate layer_decay^(L - l)``; weights that decay stand apart from the rest.
    """
    numbers = layer_numbers(backbone) if layer_decay != 1 else {}
    last = max(numbers.values(), default=0)
    plain = undecayed(backbone) if weight_decay else set()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            continue
        number, decays = numbers.get(name, last), bool(weight_decay) and name not in plain
        start = {
            "params": [],
            "lr": rate * layer_decay ** (last - number),
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((number, decays), start)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """The number of its layer, from 0 at the input, of each parameter by its name: by timm, or by the order of the parts."""
    path, network = inner_network(backbone)
    numbers = by_matcher(network)
    if numbers is None:
        numbers = by_order(network)
    return {below(path, name): numbers.get(name, 0) for name, _ in network.named_parameters()}


def undecayed(backbone: nn.Module) -> set[str]:
    """Names of parameters whose weights should not decay: vectors, biases, those of norms, and what timm names."""
    path, network = inner_network(backbone)
    named = network.no_weight_decay() if hasattr(type(network), "no_weight_decay") else ()  # type: ignore[operator]
    found = {below(path, name) for name in named}
    for prefix, part in backbone.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim <= 1 or name == "bias" or isinstance(part, NORMS):
                found.add(below(prefix, name))
    return found


def inner_network(backbone: nn.Module) -> tuple[str, nn.Module]:
    """The network inside modules that only wrap it, and its path: one that timm can divide, or has more than one part."""
    path, network = "", backbone
    while not hasattr(
        type(network), "group_matcher"
    ):  # a compiled module has all attributes of the one inside
        parts = with_parameters(network)
        if len(parts) != 1 or list(network.parameters(recurse=False)):
            break
        ((name, network),) = parts
        path = below(path, name)
    return path, network


def by_matcher(network: nn.Module) -> dict[str, int] | None:
    """Layers as timm numbers them; None for what it does not divide."""
    if not hasattr(type(network), "group_matcher"):
        return None
    from timm.models import group_parameters

    try:
        matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # some models have a method that cannot answer
        return None
    return group_parameters(network, matcher, reverse=True)


def by_order(network: nn.Module) -> dict[str, int]:
    """Layers in the order of the parts; the network's own parameters belong to the first, and vectors to the layer before."""
    layers: list[list[str]] = []

    def add(part: nn.Module, path: str) -> None:
        named = [(below(path, name), parameter) for name, parameter in part.named_parameters()]
        if layers and all(parameter.ndim <= 1 for _, parameter in named):
            layers[-1] += [name for name, _ in named]
        else:
            layers.append([name for name, _ in named])

    def visit(part: nn.Module, path: str, is_whole: bool = False) -> None:
        parts = with_parameters(part)
        holds_list = len(parts) == 1 and type(parts[0][1]) in LISTS
        is_open = is_whole or type(part) in CONTAINERS or holds_list
        if not parts or not is_open or (list(part.parameters(recurse=False)) and not is_whole):
            add(part, path)
            return
        for name, child in parts:
            visit(child, below(path, name))

    visit(network, "", is_whole=True)
    numbers = {name: number for number, names in enumerate(layers) for name in names}
    return {name: numbers.get(name, 0) for name, _ in network.named_parameters()}


def with_parameters(part: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children that have parameters, by name."""
    return [
        (name, child) for name, child in part.named_children() if next(child.parameters(), None) is not None
    ]


def below(path: str, name: str) -> str:
    """A name inside a path."""
    return f"{path}.{name}" if path else name
