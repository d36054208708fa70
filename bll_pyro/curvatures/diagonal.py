"""Independent weights: the diagonal of the precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.curvatures.base import Curvature, Precision, Sums
from bll_pyro.gaussian.information import Information
from bll_pyro.gaussian.precision import diagonal


class DiagonalPrecision(Precision):
    """``values [K, P]``."""

    def __init__(self, values: Float[Tensor, "K P"]) -> None:
        self.values = values
        self.log_det = values.log().sum()

    def gaussian(self, loc: Float[Tensor, "K P"]) -> gaussian.Diagonal:
        return gaussian.Diagonal(loc, self.values.detach().rsqrt())

    def solve(self, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        return vectors / self.values.detach()


@dataclass(frozen=True, eq=False)
class Diagonal(Curvature):
    """``diag(sum_n L_n[k, k] h_n[p]^2)``: K P numbers.

    Parameters
    ----------
    principal_axes
        Take independence in the principal axes of the features instead of the features themselves, where the prior
        allows the rotation.
    """

    principal_axes: bool = True

    @property
    def can_rotate(self) -> bool:
        """Whether the axes may be rotated."""
        return self.principal_axes

    def zeros(self, num_outputs: int, num_columns: int, independent: bool, like: Tensor) -> Sums:
        return (like.new_zeros(num_outputs, num_columns, dtype=torch.float64),)

    def add(self, sums: Sums, design: Float[Tensor, "B P"], information: Information) -> None:
        sums[0].add_(information.diagonal().mT @ design.square())

    def precision(self, sums: Sums, prior: Float[Tensor, "K P ..."]) -> DiagonalPrecision:
        return DiagonalPrecision(sums[0] + diagonal(prior))

    def times(self, sums: Sums, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        return sums[0] * vectors

    def contract(
        self, slopes: Sums, design: Float[Tensor, "B P"], information: Information
    ) -> Float[Tensor, ""]:
        return (information.diagonal() * (design.square() @ slopes[0].mT)).sum()
