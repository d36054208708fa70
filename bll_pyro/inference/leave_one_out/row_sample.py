"""A sample of rows with probabilities proportional to size: unbiased totals, and predictions of the rows outside it.

With sizes ``s_n``, row n is in the sample with probability ``pi_n = min(1, kappa s_n)``, so that the largest rows are
always in it, and has the weight ``1 / pi_n`` (Horvitz and Thompson 1952). For a row outside, a costly quantity d is
predicted from a cheap one c as ``rho c``. The ratio ``rho`` is that of the sample's sums of d and c, each row weighted by
``1 / pi_n - 1``, the number of rows outside the sample that it represents (Brewer 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SHARE = 0.1  # summand of every size, as a share of the mean size: it bounds the weights 1 / pi_n


@dataclass(frozen=True, eq=False)
class RowSample:
    """A sample of n of N rows.

    Parameters
    ----------
    index
        Row numbers in increasing order, ``[n]``.
    count
        Number of rows that each represents, ``1 / pi_n >= 1``, ``[n]``.
    """

    index: Tensor
    count: Tensor

    @classmethod
    def by_size(cls, sizes: Tensor, num_rows: int) -> RowSample:
        """A systematic sample of about ``num_rows`` rows by non-negative sizes ``[N]``; deterministic."""
        sizes = sizes.double()
        sizes = sizes + LEAST_SHARE * sizes.mean() + torch.finfo(sizes.dtype).tiny
        chance = torch.zeros_like(sizes)
        certain = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        while (
            True
        ):  # rows whose probability would exceed 1 get 1, and the others share the rest of the sample
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
        """Values of all rows ``[N]``: ``found [n]`` in the sample, ``cheap [N]`` times the ratio of both outside."""
        weight = self.count - 1
        sampled = cheap[self.index].double()
        total = (weight * sampled).sum()
        ratio = float((weight * found.double()).sum() / total) if float(total) > 0 else 0.0
        result = ratio * cheap
        result[self.index] = found.to(result)
        return result
