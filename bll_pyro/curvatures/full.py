"""The whole precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.curvatures.base import Curvature, Precision, Sums
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.information import Information
from bll_pyro.gaussian.precision import times


class BlockPrecision(Precision):
    """A matrix for each output, ``values [K, P, P]``."""

    def __init__(self, values: Float[Tensor, "K P P"]) -> None:
        self.values, self.tril = values, cholesky(values, "precision of the weights")
        self.log_det = 2 * self.tril.diagonal(dim1=-2, dim2=-1).log().sum()

    def gaussian(self, loc: Float[Tensor, "K P"]) -> gaussian.BlockDiagonal:
        covariance = torch.cholesky_inverse(self.tril.detach())
        return gaussian.BlockDiagonal(loc, cholesky(covariance, "covariance of the weights"))

    def solve(self, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        return torch.cholesky_solve(vectors[..., None], self.tril.detach()).squeeze(-1)


class JointPrecision(Precision):
    """One matrix for all weights, ``values [K, P, K, P]``."""

    def __init__(self, values: Float[Tensor, "K P K P"]) -> None:
        size = values.shape[0] * values.shape[1]
        self.tril = cholesky(values.reshape(size, size), "precision of the weights")
        self.log_det = 2 * self.tril.diagonal().log().sum()

    def gaussian(self, loc: Float[Tensor, "K P"]) -> gaussian.Dense:
        tril = self.tril.detach()
        eye = torch.eye(len(tril), dtype=tril.dtype, device=tril.device)
        root = torch.linalg.solve_triangular(tril, eye, upper=False).mT
        return gaussian.Dense(loc, root.reshape(*loc.shape, -1), -tril.diagonal().log().sum())

    def solve(self, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        return torch.cholesky_solve(vectors.reshape(-1, 1), self.tril.detach()).view_as(vectors)


@dataclass(frozen=True, eq=False)
class Full(Curvature):
    """``sum_n L_n (x) h_n h_n'`` as it is: (K P)^2 numbers, or K P^2 where outputs are independent."""

    def num_numbers(self, num_outputs: int, num_columns: int, independent: bool) -> int:
        """``(K P)^2``, or ``K P^2``."""
        return num_outputs * num_columns**2 * (1 if independent else num_outputs)

    def zeros(self, num_outputs: int, num_columns: int, independent: bool, like: Tensor) -> Sums:
        middle = () if independent else (num_outputs,)
        return (like.new_zeros(num_outputs, num_columns, *middle, num_columns, dtype=torch.float64),)

    def add(self, sums: Sums, design: Float[Tensor, "B P"], information: Information) -> None:
        (total,) = sums
        num_outputs = len(total)
        for row in range(num_outputs):
            if total.dim() == 3:
                total[row].add_((design * information.entry(row, row)[:, None]).mT @ design)
                continue
            for column in range(row + 1):
                part = (design * information.entry(row, column)[:, None]).mT @ design
                total[row, :, column].add_(part)
                if column < row:
                    total[column, :, row].add_(part)

    def precision(self, sums: Sums, prior: Float[Tensor, "K P ..."]) -> BlockPrecision | JointPrecision:
        (total,) = sums
        if total.dim() == 3 and prior.dim() < 4:
            return BlockPrecision(total + (torch.diag_embed(prior) if prior.dim() == 2 else prior))
        return JointPrecision(as_matrix(total) + as_matrix(prior))

    def times(self, sums: Sums, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        return times(sums[0], vectors)

    def contract(
        self, slopes: Sums, design: Float[Tensor, "B P"], information: Information
    ) -> Float[Tensor, ""]:
        (slope,) = slopes
        result = design.new_zeros(())
        for row in range(len(slope)):
            if slope.dim() == 3:
                result = result + information.entry(row, row) @ row_quadratic(design, slope[row])
                continue
            for column in range(row + 1):
                twice = 2.0 if column < row else 1.0
                result = result + twice * (
                    information.entry(row, column) @ row_quadratic(design, slope[row, :, column])
                )
        return result


def as_matrix(matrix: Float[Tensor, "K P ..."]) -> Float[Tensor, "K P K P"]:
    """A precision in any form as one matrix ``[K, P, K, P]``."""
    num_outputs, num_columns = matrix.shape[:2]
    if matrix.dim() == 4:
        return matrix
    if matrix.dim() == 2:
        return torch.diag(matrix.flatten()).view(num_outputs, num_columns, num_outputs, num_columns)
    return torch.block_diag(*matrix).view(num_outputs, num_columns, num_outputs, num_columns)


def row_quadratic(design: Float[Tensor, "B P"], matrix: Float[Tensor, "P P"]) -> Float[Tensor, " B"]:
    """``h_n' M h_n`` of each row, ``[N]``."""
    return ((design @ matrix) * design).sum(-1)
