"""Memory that a computation fills again and again.

An allocator may give every large array back to the operating system, and what comes back from there has to be mapped page by page:
for arrays that are filled once and read once that costs as much as the work on them.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MAX_NUMBERS = 2**22  # kept for each name; more is asked for anew


class _Kept(threading.local):
    """What this thread keeps, by name and dtype."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


_KEPT = _Kept()


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An array of any content, like another in dtype and device, which is the caller's until the name is asked for again.

    Other threads have their own. On a device the allocator of torch does the same already, and a program that is being traced
    must not hold memory from outside.
    """
    num_numbers = torch.Size(shape).numel()
    if like.device.type != "cpu" or num_numbers > MAX_NUMBERS or _is_traced():
        return like.new_empty(shape)
    memory = _KEPT.memory.get((name, like.dtype))
    if memory is None or len(memory) < num_numbers:
        with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
            memory = _KEPT.memory[name, like.dtype] = torch.empty(
                num_numbers, dtype=like.dtype, device=like.device
            )
    return memory[:num_numbers].view(shape)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
