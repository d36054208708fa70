"""A sample of rows that stands for all: drawn by size, its totals unbiased, and the rows outside it by a ratio.

With sizes ``s_n`` row n is in the sample with probability ``pi_n = min(1, kappa s_n)``, so that the rows that matter most
are all in it, and counts for ``1 / pi_n`` rows (Horvitz and Thompson 1952). What a quantity d is on the rows outside is
predicted by a cheap one c of every row, as ``rho c`` with the ratio of both over the sample, each row counting for the
``1 / pi_n - 1`` rows that it stands for outside it (Brewer 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SHARE = 0.1  # of the mean size, for rows of next to none: no row of the sample counts for very many


@dataclass(frozen=True, eq=False)
class RowSample:
    """n of N rows.

    Parameters
    ----------
    index
        The rows, in order ``[n]``.
    count
        How many rows each counts for, ``1 / pi_n >= 1``, ``[n]``.
    """

    index: Tensor
    count: Tensor

    @classmethod
    def by_size(cls, sizes: Tensor, num_rows: int) -> RowSample:
        """About ``num_rows`` rows by sizes ``[N]`` of at least 0: a systematic sample, the same for the same sizes."""
        sizes = sizes.double()
        sizes = sizes + LEAST_SHARE * sizes.mean() + torch.finfo(sizes.dtype).tiny
        chance = torch.zeros_like(sizes)
        certain = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        while True:  # those whose probability would exceed one are taken, and the others share what is left
            chance = sizes * ((num_rows - int(certain.sum())) / sizes[~certain].sum())
            more = (chance >= 1) & ~certain
            if not bool(more.any()):
                break
            certain |= more
            if bool(certain.all()):
                break
        chance[certain] = 1.0
        passed = (chance.cumsum(0) + 0.5).floor()
        chosen = certain | (passed > passed.roll(1).index_fill(0, passed.new_zeros(1).long(), 0.0))
        index = chosen.nonzero().squeeze(-1)
        return cls(index, chance[index].reciprocal())

    def spread(self, found: Tensor, cheap: Tensor) -> Tensor:
        """Values of all rows ``[N]``: ``found [n]`` in the sample, and outside ``cheap [N]`` times the ratio of both."""
        weight = self.count - 1
        own = cheap[self.index].double()
        total = (weight * own).sum()
        ratio = float((weight * found.double()).sum() / total) if float(total) > 0 else 0.0
        result = ratio * cheap
        result[self.index] = found.to(result)
        return result
