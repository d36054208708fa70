"""Approximate inverses of the precision of the weights, cheap to make and to apply: preconditioners.

===================== ======================================== ============= ====================
preconditioner        approximation of the precision           numbers       used
===================== ======================================== ============= ====================
BlockPreconditioner   a block for each output, and one for the (K + 1) P^2   while these are few
                      sum of all outputs
ProductPreconditioner ``(mean L) (x) H'H + prior``, diagonal   K^2 + P^2     else
                      in the eigenvectors of the factors
===================== ======================================== ============= ====================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.curvatures import Full
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.information import DiagonalInformation
from bll_pyro.gaussian.precision import diagonal
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.row_likelihood import RowLikelihood, RowsAt
from bll_pyro.inference.row_targets import NoiseValues

NUM_BLOCK_ROWS = 8192  # most rows from which blocks are computed
MAX_BLOCK_NUMBERS = 2**25  # largest K P^2 of blocks
MAX_ROTATED_COLUMNS = 4096  # largest P, and below largest K, whose eigenvectors save more time than they cost
MAX_ROTATED_OUTPUTS = 1024

Preconditioner = Callable[[Tensor], Tensor]  # approximates P^-1 v for v [K, P]


class Preconditioners(ABC):
    """Preconditioners of one model at any point and prior."""

    @abstractmethod
    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """The preconditioner at one point."""


def preconditioners(function: RowLikelihood, num_outputs: int) -> Preconditioners:
    """The preconditioners for a model of this size."""
    if num_outputs * function.rows.num_columns**2 <= MAX_BLOCK_NUMBERS:
        return BlockPreconditioner(function)
    return ProductPreconditioner.of(function)


class BlockPreconditioner(Preconditioners):
    """Cholesky factors ``[K, P, P]`` of each output's precision, from up to 8,192 evenly spaced rows.

    A softmax does not depend on a constant added to all outputs, which the blocks alone do not represent. Where outputs
    are coupled, a term for these P directions Z is added: ``B^-1 + Z (Z'PZ)^-1 Z'``.
    """

    def __init__(self, function: RowLikelihood) -> None:
        rows = function.rows
        self._is_all = rows.num_rows <= NUM_BLOCK_ROWS and rows.ranks.size == 1
        part = rows if self._is_all else rows.subset(NUM_BLOCK_ROWS)
        self._part = RowLikelihood(function.likelihood, part, function.factor * rows.num_rows / part.num_rows)

    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """Sum and factor the blocks."""
        num_outputs, num_columns = rows.weights.shape
        blocks = Full()
        sums = blocks.zeros(num_outputs, num_columns, True, rows.weights)
        common = blocks.zeros(1, num_columns, True, rows.weights)
        ones = rows.weights.new_ones(num_outputs, num_outputs)
        for design, information in (rows if self._is_all else self._part.at(rows.weights, noise)).informed():
            blocks.add(sums, design, DiagonalInformation(information.diagonal()))
            if not information.is_diagonal:
                inner = information.inner(ones.to(design))
                blocks.add(common, design, DiagonalInformation(inner[:, None]))
        prior_blocks = (
            prior.precision if prior.precision.dim() == 3 else torch.diag_embed(diagonal(prior.precision))
        )
        tril = cholesky(self._part.factor * sums[0] + prior_blocks, "precision of the weights")
        if rows.likelihood.independent_outputs:
            return lambda vectors: torch.cholesky_solve(vectors[..., None], tril).squeeze(-1)
        common_total = self._part.factor * common[0][0] + prior_blocks.sum(0)
        common_tril = cholesky(common_total, "precision of the weights")

        def apply(vectors: Tensor) -> Tensor:
            in_common = torch.cholesky_solve(vectors.sum(0)[:, None], common_tril).mT
            return torch.cholesky_solve(vectors[..., None], tril).squeeze(-1) + in_common

        return apply


@dataclass(frozen=True, eq=False)
class ProductPreconditioner(Preconditioners):
    """Eigenvectors of ``H'H``, computed once, combined with those of the mean information at a point.

    Parameters
    ----------
    values
        Eigenvalues ``[P]``.
    vectors
        Eigenvectors ``[P, P]``; None where P is too large, and ``values`` is the diagonal of ``H'H``.
    """

    values: Tensor
    vectors: Tensor | None

    @classmethod
    def of(cls, function: RowLikelihood) -> ProductPreconditioner:
        """Sum ``H'H`` in one pass over the rows, and decompose it."""
        num_columns = function.rows.num_columns
        rotated = num_columns <= MAX_ROTATED_COLUMNS
        shape = (num_columns, num_columns) if rotated else (num_columns,)
        total = torch.zeros(shape, dtype=torch.float64, device=function.rows.device)
        for design, _ in function.blocks(1):
            total.add_(design.mT @ design if rotated else design.square().sum(0), alpha=function.factor)
        (total,) = function.rows.ranks.sums(total)
        if not rotated:
            return cls(total, None)
        values, vectors = torch.linalg.eigh(total)
        return cls(values.clamp_min(0), vectors)

    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """The preconditioner that drops the prior's off-diagonal elements in the eigenvectors."""
        level, mixing, level_sum = self._output_axes(rows)
        prior_diagonal = self._rotate(diagonal(prior.precision), square=True)
        common = (level_sum * self.values + prior_diagonal.sum(0)).reciprocal()
        if mixing is not None:
            prior_diagonal = mixing.square().mT @ prior_diagonal
        scale = (level[:, None] * self.values + prior_diagonal).reciprocal()
        # read here, so that the closure does not keep the rows alive
        independent = rows.likelihood.independent_outputs

        def apply(vectors: Tensor) -> Tensor:
            rotated = self._rotate(vectors)
            if mixing is not None:
                solved = mixing @ (scale * (mixing.mT @ rotated))
            else:
                solved = scale * rotated
                if not independent:
                    solved = solved + common * rotated.sum(0)
            return solved if self.vectors is None else solved @ self.vectors.mT

        return apply

    def _rotate(self, vectors: Tensor, square: bool = False) -> Tensor:
        if self.vectors is None:
            return vectors
        return vectors @ (self.vectors.square() if square else self.vectors)

    def _output_axes(self, rows: RowsAt) -> tuple[Tensor, Tensor | None, float]:
        """Eigenvalues ``[K]`` and eigenvectors ``[K, K]`` of the mean information, or its diagonal and None; and its sum."""
        num_rows, num_outputs, ranks = (
            rows.function.rows.num_rows,
            len(rows.weights),
            rows.function.rows.ranks,
        )
        if rows.likelihood.independent_outputs or num_outputs > MAX_ROTATED_OUTPUTS:
            level, level_sum = rows.weights.new_zeros(num_outputs), rows.weights.new_zeros(())
            for design, information in rows.informed():
                level.add_(information.diagonal().sum(0))
                level_sum.add_(
                    information.times(design.new_ones(len(design), num_outputs)).sum().clamp_min(0)
                )
            level, level_sum = ranks.sums(level, level_sum)
            return level / num_rows, None, float(level_sum) / num_rows
        total = rows.weights.new_zeros(num_outputs, num_outputs)
        for _, information in rows.informed():
            total.add_(information.sum())
        (total,) = ranks.sums(total)
        level, mixing = torch.linalg.eigh(total / num_rows)
        return level.clamp_min(0), mixing, float(level.sum()) / num_rows
