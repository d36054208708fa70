"""Mean and variance of rows, measured in one pass, for standardisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Number, mean and variance of rows, in float64, column by column; ``a + b`` are the moments of the rows of both.

    For parts a and b with :math:`\delta = \bar x_b - \bar x_a`:

    .. math::
        \bar x = \bar x_a + \delta \frac{n_b}{n_a + n_b}, \qquad M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b},

    with M the sum of squared deviations (Chan, Golub and LeVeque 1983), which is stable also for means far from 0.
    """

    count: float
    """Number of rows, or the sum of their weights."""
    mean: Tensor
    """Mean of each column ``[D]``."""
    deviations: Tensor
    """Sum of squared deviations from the mean of each column ``[D]``."""
    resolution: float
    """Relative spacing of numbers in the dtype of the rows; smaller differences are rounding."""

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor | None = None) -> Self:
        """Moments of rows ``[n, D]``, weighted by ``weight [n]``."""
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(
                f"expected rows [n, D] with n > 0, got shape {list(rows.shape)}; reshape with .flatten(1)"
            )
        rows = rows.detach()
        resolution = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
        # centred on the first row, so that the variance of a constant column is exactly 0
        shift = rows[0].double()
        centred = rows.double() - shift
        if weight is None:
            mean = centred.mean(0)
            return cls(len(rows), shift + mean, (centred - mean).square().sum(0), resolution)
        weights = weight.to(centred)
        count = float(weights.sum())
        mean = weights @ centred / count
        return cls(count, shift + mean, weights @ (centred - mean).square(), resolution)

    @property
    def variance(self) -> Tensor:
        """Variance of each column ``[D]``: the mean squared deviation (divided by n)."""
        return self.deviations / self.count

    @property
    def constant(self) -> Tensor:
        """Whether each column ``[D]`` is constant: its standard deviation is at most the rounding of its mean."""
        return self.variance.sqrt() <= self.resolution * self.mean.abs()

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"expected rows of one width, got {len(self.mean)} and {len(other.mean)} features; use one backbone for all "
                "rows"
            )
        count = self.count + other.count
        delta = other.mean.to(self.mean.device) - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.deviations
            + other.deviations.to(self.mean.device)
            + delta.square() * (self.count * (other.count / count)),
            max(self.resolution, other.resolution),
        )
