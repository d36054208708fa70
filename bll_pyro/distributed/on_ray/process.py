"""What a process that computes batch after batch is set to: threads of torch, and memory that is kept from batch to batch."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch

# of glibc's mallopt: numbers of its parameters, and what they are set to
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT_BYTES = 2**30, 2**25  # the second is the most that glibc takes


def set_up(num_cpus: float) -> None:
    """Set up the process of an actor that has some CPUs, in the thread that computes."""
    torch.set_num_threads(max(int(num_cpus), 1))
    _keep_memory()


def _keep_memory() -> None:
    """Keep up to 1 GiB of freed memory, in blocks of up to 32 MiB; nothing where there is no glibc.

    Otherwise the outputs of each layer are new pages of the system, of each batch again, which takes a fifth of the time of a small
    network. It is what the thread gets that starts the process: other ones have heaps of their own.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        allocator = ctypes.CDLL(None)
        allocator.mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        allocator.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
