"""Memory that a computation uses again and again.

An allocator may give every large array back to the operating system, and new memory has to be mapped page by page. For arrays
that are written once and read once this costs as much as the work on them.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MAX_NUMBERS = 2**22  # kept for each name; larger arrays are allocated anew


class _Kept(threading.local):
    """What this thread keeps, by name and dtype."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


_KEPT = _Kept()


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An array of any content, like another in dtype and device, valid until the next call with this name.

    Every thread has its own. On a device the allocator of torch already keeps memory, and a traced program must not hold memory
    from outside.
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
