r"""Random order for rows that lie on a disk: blocks in random order, and the rows of many blocks mixed in a buffer.

Single rows in random order would each be a read of their own. Here a read is a block of c rows that lie beside each other. All
blocks are put in random order; as many as fill a buffer (a window of M rows) are read, and the rows of the window are put in random
order. Each row comes exactly once in a pass. What differs from a random order of all N rows: rows of a block come in one window.

Quality. Each row is equally likely at each place of the pass (up to the shorter last block). Let :math:`\rho` be the correlation of
a quantity, such as a gradient, between rows of one block: 0 where rows lie in random order already, 1 where those of a block are
all alike. The variance of its mean over a batch of b rows is

.. math:: 1 + \rho (b - 1) \left(\frac{c - 1}{M - 1} - \frac{c - 1}{N - 1}\right)

times that of a batch of a random order of all rows, about. With the default sizes of block and buffer, 1,024 blocks in a window,
that is at most 1.5 for batches of 512.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BUFFER_BYTES = 2**28  # of a window; two of them are in memory
BLOCK_BYTES = 2**18  # of a block


def windows(num_rows: int, block: int, window: int, generator: torch.Generator) -> Iterator[list[slice]]:
    """The blocks of each window, in the order in which they lie on the disk."""
    starts = torch.arange(0, num_rows, block)
    drawn = torch.randperm(len(starts), generator=generator, device=generator.device).cpu()
    for some in starts[drawn].split(max(window // block, 1)):
        yield [slice(start, min(start + block, num_rows)) for start in some.sort().values.tolist()]


def row_numbers(blocks: list[slice]) -> Tensor:
    """Row numbers of blocks, one after the other."""
    return torch.cat([torch.arange(block.start, block.stop) for block in blocks])


def batches_of(
    parts: Iterator[tuple[Tensor, Tensor]], batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their numbers, from those of windows: each window in random order, cut into batches of one size.

    What is left of a window, fewer rows than a batch, begins the first batch of the next.
    """
    left: tuple[Tensor, Tensor] | None = None
    for rows, numbers in parts:
        order = torch.randperm(len(rows), generator=generator, device=generator.device).cpu()
        start = 0
        if left is not None:
            start = batch_size - len(left[0])
            first = order[:start]
            batch = torch.cat([left[0], rows[first]]), torch.cat([left[1], numbers[first]])
            left = batch if len(batch[1]) < batch_size else None
            if left is None:
                yield batch
        rest = order[start:]
        for chosen in rest.split(batch_size) if len(rest) else ():
            batch = rows.index_select(0, chosen), numbers[chosen]
            if len(chosen) < batch_size:
                left = batch
            else:
                yield batch
    if left is not None:
        yield left
