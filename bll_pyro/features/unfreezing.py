"""Selection of the parameters that joint training updates, by blocks or by names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        found = {name for name in names if name == stem or name.startswith(f"{stem}.")}
        if not found:
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise ValueError(
                f"unfreeze: expected names of parts of the network, got {prefix!r}; it has: {', '.join(parts)}"
            )
        chosen |= found
    return chosen


def _last_blocks(model: nn.Module, names: Sequence[str], num_blocks: int) -> set[str]:
    from timm.models import group_parameters

    try:
        matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:  # some models have no matcher, or no coarse one
        parts = dict.fromkeys(name.partition(".")[0] for name in names)
        raise ValueError(
            f"unfreeze: expected names of parts, since timm does not divide {type(model).__name__} into blocks, got "
            f"{num_blocks}; it has: {', '.join(parts)}"
        ) from error
    blocks = group_parameters(model, matcher, reverse=True)
    # parameters that match no pattern of timm are layers after the last block, such as a norm, and belong to it
    after_blocks = {name for name in names if not _matches(matcher, name)}
    numbers = sorted({blocks[name] for name in names if name not in after_blocks})
    if not 0 <= num_blocks <= len(numbers):
        raise ValueError(
            f"unfreeze: expected a number of blocks from 0 to {len(numbers)} for {type(model).__name__}, got "
            f"{num_blocks}; True unfreezes all of them"
        )
    if num_blocks == 0:
        return set()
    return after_blocks | {name for name in names if blocks[name] in numbers[-num_blocks:]}


def _matches(matcher: Any, name: str) -> bool:
    if not isinstance(matcher, Mapping):
        number = matcher(name)
        return (number[0] if isinstance(number, tuple) else number) != float("inf")
    patterns = []
    for entry in matcher.values():
        patterns += [entry] if isinstance(entry, str) else [pattern for pattern, _ in entry or ()]
    return any(re.match(pattern, name) for pattern in patterns)
