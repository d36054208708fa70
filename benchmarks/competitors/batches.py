"""Mini-batches of features that are already in memory: rows by index, no loader in between."""

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled(num_rows: int, batch_size: int, num_epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the row numbers of each batch; the last batch of an epoch may be shorter."""
    for _ in range(num_epochs):
        yield from torch.randperm(num_rows, generator=generator).split(batch_size)


def endless(num_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield row numbers of full batches without end; what is left of an epoch is dropped, as timings want it."""
    if batch_size > num_rows:
        raise ValueError(f"Expected batch_size <= num_rows, got {batch_size} > {num_rows}; make more rows.")
    while True:
        order = torch.randperm(num_rows, generator=generator)
        for start in range(0, num_rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
