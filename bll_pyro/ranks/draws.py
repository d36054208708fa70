"""Random numbers of the rows of a batch that several ranks share: the same numbers as in one process.

All ranks draw for all rows of a batch, and each takes those of its own. So generators are at the same state on all ranks, and a
row has the same numbers whichever rank holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowGenerator(torch.Generator):
    """A generator that knows which rows of the present batch are here.

    Attributes
    ----------
    size
        Number of ranks.
    own
        Places of the rows of this rank in the batch.
    batch_size
        Rows of the batch on all ranks.
    """

    size: int = 1
    own: Tensor | slice = slice(None)
    batch_size: int = 0


def row_normals(num_rows: int, num: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals ``[num_rows, num]``, independent for each row, in the dtype and on the device of a tensor."""
    shared = isinstance(generator, RowGenerator)
    shape = (generator.batch_size if shared else num_rows, num)  # type: ignore[union-attr]
    drawn = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
    return drawn[generator.own] if shared else drawn  # type: ignore[union-attr]


def rows_counted(num_rows: int, generator: torch.Generator | None) -> float:
    """Rows that a batch stands for, ``num_rows`` of them here: all of it, or a rank's share, so that its terms average over ranks.

    A rank counts its rows as if they were as many as the batch has for each rank. The mean over ranks of ``N / counted`` times
    their sums is then ``N / B`` times the sum over the batch, and what does not depend on rows is counted once.
    """
    return generator.batch_size / generator.size if isinstance(generator, RowGenerator) else num_rows
