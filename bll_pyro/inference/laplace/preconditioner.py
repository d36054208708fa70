"""Approximate inverses of the precision of the weights, cheap to make and to apply: what conjugate gradients start from.

================ =========================================== ================== =====================
preconditioner   stands for                                  numbers            used
================ =========================================== ================== =====================
BlockPreconditioner     the precision of each output by itself,     (K + 1) P^2        while these are few
                 and of all outputs moved alike
ProductPreconditioner      ``(mean L) (x) H'H + prior``, diagonal in   K^2 + P^2          else
                 the eigenvectors of the factors
================ =========================================== ================== =====================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.curvatures import Full
from bll_pyro.gaussian.information import DiagonalInformation
from bll_pyro.gaussian.precision import diagonal
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.row_likelihood import NoiseValues, RowLikelihood, RowsAt

NUM_BLOCK_ROWS = 8192
MAX_BLOCK_NUMBERS = 2**25
MAX_ROTATED_COLUMNS = 4096  # beyond these widths eigenvectors cost more than they save
MAX_TURNED_OUTPUTS = 1024


Preconditioner = Callable[[Tensor], Tensor]  # approximates P^-1 v for v [K, P]


class Preconditioners(ABC):
    """Makes preconditioners of one model, for any point and prior."""

    @abstractmethod
    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """The preconditioner at one point."""


def preconditioners(function: RowLikelihood, num_outputs: int) -> Preconditioners:
    """The kind that suits the size."""
    if num_outputs * function.rows.num_columns**2 <= MAX_BLOCK_NUMBERS:
        return BlockPreconditioner(function)
    return ProductPreconditioner.of(function)


class BlockPreconditioner(Preconditioners):
    """Cholesky factors ``[K, P, P]`` of each output's precision, from up to 8,192 evenly spaced rows.

    A softmax hardly feels all outputs moved alike, so that the blocks say nothing of it: where outputs touch each
    other, that direction is solved for beside them, ``B^-1 + Z (Z'PZ)^-1 Z'`` with Z the P common moves.
    """

    def __init__(self, function: RowLikelihood) -> None:
        rows = function.rows
        self._is_all = rows.num_rows <= NUM_BLOCK_ROWS
        part = rows if self._is_all else rows.subset(NUM_BLOCK_ROWS)
        self._part = RowLikelihood(function.likelihood, part, function.factor * rows.num_rows / part.num_rows)

    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """Sum and factor the blocks."""
        num_outputs, num_columns = rows.weights.shape
        blocks = Full()
        sums = blocks.zeros(num_outputs, num_columns, True, rows.weights)
        common = blocks.zeros(1, num_columns, True, rows.weights)
        together = rows.weights.new_ones(num_outputs, num_outputs)
        for design, information in (rows if self._is_all else self._part.at(rows.weights, noise)).informed():
            blocks.add(sums, design, DiagonalInformation(information.diagonal()))
            if not information.is_diagonal:
                inner = information.inner(together.to(design))
                blocks.add(common, design, DiagonalInformation(inner[:, None]))
        own = prior.precision if prior.precision.dim() == 3 else torch.diag_embed(diagonal(prior.precision))
        tril = torch.linalg.cholesky(self._part.factor * sums[0] + own)
        if rows.likelihood.independent_outputs:
            return lambda vectors: torch.cholesky_solve(vectors[..., None], tril).squeeze(-1)
        common_tril = torch.linalg.cholesky(self._part.factor * common[0][0] + own.sum(0))

        def apply(vectors: Tensor) -> Tensor:
            moved = torch.cholesky_solve(vectors.sum(0)[:, None], common_tril).mT
            return torch.cholesky_solve(vectors[..., None], tril).squeeze(-1) + moved

        return apply


@dataclass(frozen=True, eq=False)
class ProductPreconditioner(Preconditioners):
    """Eigenvectors of ``H'H``, made once; at a point, those of the mean information beside them.

    Parameters
    ----------
    values
        Eigenvalues ``[P]``.
    vectors
        ``[P, P]``; None where P is too large, and ``values`` are the diagonal of ``H'H``.
    """

    values: Tensor
    vectors: Tensor | None

    @classmethod
    def of(cls, function: RowLikelihood) -> ProductPreconditioner:
        """One pass over the rows."""
        num_columns = function.rows.num_columns
        rotated = num_columns <= MAX_ROTATED_COLUMNS
        shape = (num_columns, num_columns) if rotated else (num_columns,)
        total = torch.zeros(shape, dtype=torch.float64, device=function.rows.device)
        for design, _ in function.blocks(1):
            total.add_(design.mT @ design if rotated else design.square().sum(0), alpha=function.factor)
        if not rotated:
            return cls(total, None)
        values, vectors = torch.linalg.eigh(total)
        return cls(values.clamp_min(0), vectors)

    def at(self, rows: RowsAt, prior: PriorTerms, noise: NoiseValues) -> Preconditioner:
        """What is not diagonal in the eigenvectors is left out."""
        level, mixing, together = self._output_axes(rows)
        inside = self._rotate(diagonal(prior.precision), square=True)
        common = (together * self.values + inside.sum(0)).reciprocal()
        if mixing is not None:
            inside = mixing.square().mT @ inside
        scale = (level[:, None] * self.values + inside).reciprocal()
        independent = (
            rows.likelihood.independent_outputs
        )  # the rows themselves shall not live as long as this

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
        """Eigenvalues ``[K]`` and eigenvectors ``[K, K]`` of the mean information, or its diagonal; its sum."""
        num_rows, num_outputs = rows.function.rows.num_rows, len(rows.weights)
        if rows.likelihood.independent_outputs or num_outputs > MAX_TURNED_OUTPUTS:
            level, together = rows.weights.new_zeros(num_outputs), rows.weights.new_zeros(())
            for design, information in rows.informed():
                level.add_(information.diagonal().sum(0))
                together.add_(information.times(design.new_ones(len(design), num_outputs)).sum().clamp_min(0))
            return level / num_rows, None, float(together) / num_rows
        total = rows.weights.new_zeros(num_outputs, num_outputs)
        for _, information in rows.informed():
            total.add_(information.sum())
        level, mixing = torch.linalg.eigh(total / num_rows)
        return level.clamp_min(0), mixing, float(level.sum()) / num_rows
