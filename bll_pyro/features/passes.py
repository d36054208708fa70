"""Passes over stored rows: in their order, with what comes next read by a thread, and in a random one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bll_pyro.features.rows import ShardedRows
from bll_pyro.shards.ahead import made_ahead
from bll_pyro.shards.ids import Ids, first_ids
from bll_pyro.shards.shuffling import batches_of, row_numbers, windows

# read at once, of rows in their order; memory for larger pieces comes from the system, page by page, each time
PIECE_BYTES = 2**23
NUM_PIECES = 2  # read ahead
CHECKED_ROWS = 65_536  # at a time


def read_ahead(rows: ShardedRows, size: int) -> Iterator[Tensor]:
    """All rows in order, ``size`` at a time, from pieces that a thread reads."""
    step = max(PIECE_BYTES // _row_bytes(rows) // size, 1) * size
    pieces = (rows[start : start + step] for start in range(0, rows.num_rows, step))
    for piece in made_ahead(pieces, NUM_PIECES):
        yield from piece.split(size)


def shuffled(
    rows: ShardedRows, batch_size: int, generator: torch.Generator, buffer_bytes: int, block_bytes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their numbers in batches, in random order; see :mod:`bll_pyro.shards.shuffling`."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    order, mixing = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    block = max(block_bytes // _row_bytes(rows), 1)
    plans = windows(rows.num_rows, block, max(buffer_bytes // _row_bytes(rows), block), order)
    windowed = made_ahead((rows.blocks(plan), row_numbers(plan)) for plan in plans)
    return batches_of(windowed, batch_size, mixing)


def refuse_nonfinite(parts: Iterator[Tensor], ids: Callable[[int], Ids]) -> None:
    """Raise a ValueError if a feature of rows in order is NaN or infinite; ``ids`` gives the id of a row number."""
    start = 0
    for rows in parts:
        if not torch.isfinite(rows).all():
            number = start + int((~torch.isfinite(rows)).any(1).nonzero()[0, 0])
            raise ValueError(
                f"features: expected finite values, got NaN or infinite ones, the first in row {number}, with the id "
                f"{first_ids(list(ids(number)))}; leave this row out, or extract it again"
            )
        start += len(rows)


def _row_bytes(rows: ShardedRows) -> int:
    first = rows.parts[0]
    return max(first.dtype.itemsize * int(torch.Size(first.shape[1:]).numel()), 1)
