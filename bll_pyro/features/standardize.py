"""Standardisation: the centre and scale of features, measured in one pass, and applied to rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Number, mean and variance of rows, in float64, column by column; two of them add up to those of all rows.

    For parts a and b with :math:`\delta = \bar x_b - \bar x_a`:

    .. math::
        \bar x = \bar x_a + \delta \frac{n_b}{n_a + n_b}, \qquad M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b},

    with M the sum of squared deviations (Chan, Golub and LeVeque 1983), which is stable however far the mean lies
    from 0.
    """

    count: float
    """Number of rows, or the sum of their weights."""
    mean: Tensor
    """Mean of each column ``[D]``."""
    deviations: Tensor
    """Sum of squared deviations from the mean of each column ``[D]``."""
    resolution: float
    """Relative spacing of numbers in the type of the rows; differences below it are rounding."""
    dtype: torch.dtype
    """The type of the rows, float32 for narrower ones."""

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor | None = None) -> Self:
        """Measure rows ``[n, D]``; with weights ``[n]`` each counts so many times."""
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(
                f"expected rows [n, D] with n > 0, got shape {list(rows.shape)}; reshape with .flatten(1)"
            )
        rows = rows.detach()
        resolution = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        # measured from the first row, so that a constant column has a variance of exactly 0
        shift = rows[0].double()
        centred = rows.double() - shift
        if weight is None:
            mean = centred.mean(0)
            return cls(len(rows), shift + mean, (centred - mean).square().sum(0), resolution, dtype)
        shares = weight.to(centred)
        count = float(shares.sum())
        mean = shares @ centred / count
        return cls(count, shift + mean, shares @ (centred - mean).square(), resolution, dtype)

    @property
    def variance(self) -> Tensor:
        """Variance of each column ``[D]``: the mean squared deviation (divided by n)."""
        return self.deviations / self.count

    @property
    def constant(self) -> Tensor:
        """Which columns ``[D]`` carry nothing: their scale is no more than the rounding of their mean."""
        return self.variance.sqrt() <= self.resolution * self.mean.abs()

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"expected rows of one width, got {len(self.mean)} and {len(other.mean)} features; use one backbone "
                "for all"
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
            torch.promote_types(self.dtype, other.dtype),
        )


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Takes features to mean 0 and scale 1: ``(features - center) / scale``."""

    center: Tensor
    """Mean of each feature ``[D]``."""
    scale: Tensor
    """Standard deviation of each feature, or one for all ``[D]``; 1 for features that carry nothing."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the standardised features ``[N, D]``."""
        return (features - self.center) / self.scale

    def inverse(self, standardized: Tensor) -> Tensor:
        """Return the features ``[N, D]`` that were standardised."""
        return standardized * self.scale + self.center

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Standardizer:
        """Return the same constants on another device or in another type."""
        return Standardizer(
            self.center.to(device=device, dtype=dtype), self.scale.to(device=device, dtype=dtype)
        )

    @classmethod
    def identity(cls, num_features: int, dtype: torch.dtype = torch.float32) -> Self:
        """Return the standardiser that changes nothing."""
        return cls(torch.zeros(num_features, dtype=dtype), torch.ones(num_features, dtype=dtype))

    @classmethod
    def fit(cls, batches: Iterable[Tensor], *, per_feature: bool) -> Self:
        """Measure batches of features ``[B, D]`` in one pass; see :meth:`from_moments`."""
        total: Moments | None = None
        for rows in batches:
            if len(rows):
                total = Moments.of(rows) if total is None else total + Moments.of(rows)
        if total is None:
            raise ValueError("expected at least one row of features, got none; look at the data")
        return cls.from_moments(total, per_feature=per_feature)

    @classmethod
    def from_moments(cls, moments: Moments, *, per_feature: bool) -> Self:
        """Return the standardiser of measured rows.

        Parameters
        ----------
        moments
            Mean and variance of the rows; they must be finite.
        per_feature
            A scale for each feature, for columns in different units. Otherwise each feature has its own centre and all
            have one scale, the root of their mean variance: this keeps the model of the raw features.
        """
        variance = moments.variance.where(~moments.constant, 0.0)
        if not (torch.isfinite(moments.mean).all() and torch.isfinite(variance).all()):
            column = int((~(torch.isfinite(moments.mean) & torch.isfinite(moments.variance))).nonzero()[0, 0])
            raise ValueError(
                f"features: expected finite values, got NaN or infinite ones in column {column}; remove or fill them in"
            )
        if not per_feature:
            variance = variance.mean().expand_as(variance)
        scale = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
        return cls(moments.mean.to(moments.dtype), scale.to(moments.dtype).contiguous())
