"""Selection of the parameters that joint training updates, by blocks or by names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

Unfreeze = bool | int | str | Sequence[str]


def unfrozen_names(model: nn.Module, unfreeze: Unfreeze) -> set[str]:
    """Return the names of the parameters that joint training updates; ValueError for blocks or names that don't exist."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(unfreeze, bool):
        return set(names) if unfreeze else set()
    if isinstance(unfreeze, int):
        return _last_blocks(model, names, unfreeze)
    chosen: set[str] = set()
    for prefix in [unfreeze] if isinstance(unfreeze, str) else unfreeze:
        stem = prefix.rstrip(".")
        found = {name for name in names if fnmatchcase(name, stem) or fnmatchcase(name, f"{stem}.*")}
        if not found:
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise ValueError(
                f"unfreeze: expected names of parts of the network, got {prefix!r}; it has: {', '.join(parts)}"
            )
        chosen |= found
    return chosen


def _last_blocks(model: nn.Module, names: Sequence[str], num_blocks: int) -> set[str]:
    """Names of the last blocks and of all layers after them."""
    divide = _blocks_of_timm if hasattr(model, "group_matcher") else _blocks_of_a_stack
    blocks, after_blocks = divide(model, names, num_blocks)
    numbers = sorted(set(blocks.values()))
    if not 0 <= num_blocks <= len(numbers):
        raise ValueError(
            f"unfreeze: expected a number of blocks from 0 to {len(numbers)} for {type(model).__name__}, got "
            f"{num_blocks}; True unfreezes all of them"
        )
    if num_blocks == 0:
        return set()
    return after_blocks | {name for name, block in blocks.items() if block in numbers[-num_blocks:]}


def _blocks_of_timm(
    model: nn.Module, names: Sequence[str], num_blocks: int
) -> tuple[dict[str, int], set[str]]:
    """The block of each parameter, in the division that timm makes, and the parameters after the last one."""
    from timm.models import group_parameters

    try:
        matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:  # some models have no matcher, or no coarse one
        raise _no_blocks(model, names, "which timm does not divide into blocks", num_blocks) from error
    blocks = group_parameters(model, matcher, reverse=True)
    # parameters that match no pattern of timm are layers after the last block, such as a norm, and belong to it
    after_blocks = {name for name in names if not _matches(matcher, name)}
    return {name: blocks[name] for name in names if name not in after_blocks}, after_blocks


def _blocks_of_a_stack(
    model: nn.Module, names: Sequence[str], num_blocks: int
) -> tuple[dict[str, int], set[str]]:
    """The block of each parameter of the longest list of modules, and the parameters that come after the list."""
    stacks = {
        path: part for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)
    }
    longest = max(map(len, stacks.values()), default=0)
    paths = [path for path, part in stacks.items() if len(part) == longest]
    paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if len(paths) != 1:
        raise _no_blocks(model, names, "which has no single list of blocks", num_blocks)
    start = f"{paths[0]}."
    blocks = {
        name: int(name.removeprefix(start).partition(".")[0]) for name in names if name.startswith(start)
    }
    last = max(names.index(name) for name in blocks)
    return blocks, {name for name in names[last:] if name not in blocks}


def _no_blocks(model: nn.Module, names: Sequence[str], reason: str, num_blocks: int) -> ValueError:
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    return ValueError(
        f"unfreeze: expected names of parts of {type(model).__name__}, {reason}, got {num_blocks}; it has: {', '.join(parts)}"
    )


def _matches(matcher: Any, name: str) -> bool:
    if not isinstance(matcher, Mapping):
        number = matcher(name)
        return (number[0] if isinstance(number, tuple) else number) != float("inf")
    patterns = []
    for entry in matcher.values():
        patterns += [entry] if isinstance(entry, str) else [pattern for pattern, _ in entry or ()]
    return any(re.match(pattern, name) for pattern in patterns)
