"""Fisher information of the outputs of each row: how precisely its target determines f, in the smallest form for its likelihood.

Row n has a matrix ``L_n = E[-d2 log p(y | f_n) / df df']`` ``[K, K]``, the expectation over y. For likelihoods in their
canonical form (softmax, logistic, Poisson with a log link, Gaussian) it is the negative Hessian itself; for others it is
the part of it that is never negative (Gauss-Newton; Martens 2020). Nothing of size N x K x K is built.

========== ============================= =====================
form       L_n                           of
========== ============================= =====================
Diagonal   ``diag(values_n)``            targets that depend on one output each
Softmax    ``(diag(p_n) - p_n p_n') c``  classes
Dense      ``values_n``                  everything else
Weighted   ``w_n L_n``                   rows with weights
========== ============================= =====================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


class Information(ABC):
    """Matrices ``L_n [K, K]`` of N rows; everything is differentiable in its parts."""

    is_diagonal: ClassVar[bool] = False

    @abstractmethod
    def times(self, vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """``L_n v_n`` of each row, for ``v [N, K]``."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "N K"]:
        """Diagonals ``[N, K]``."""

    @abstractmethod
    def entry(self, row: int, column: int) -> Float[Tensor, " N"]:
        """One entry of every matrix, ``[N]``."""

    @abstractmethod
    def inner(self, matrix: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
        """``tr(M L_n)`` of each row, ``[N]``, for a symmetric ``M [K, K]``."""

    @abstractmethod
    def sum(self, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, "K K"]:
        """``sum_n w_n L_n [K, K]``; weights ``[N]``, 1 by default."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> Information:
        """Those of some rows."""

    def trace(self) -> Float[Tensor, " N"]:
        """``tr(L_n)``, ``[N]``."""
        return self.diagonal().sum(-1)


@dataclass(frozen=True, eq=False)
class DiagonalInformation(Information):
    """``L_n = diag(values_n)``, ``values [N, K]``."""

    values: Float[Tensor, "N K"]
    is_diagonal: ClassVar[bool] = True

    def times(self, vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return self.values * vectors

    def diagonal(self) -> Float[Tensor, "N K"]:
        return self.values

    def entry(self, row: int, column: int) -> Float[Tensor, " N"]:
        return self.values[:, row] if row == column else torch.zeros_like(self.values[:, row])

    def inner(self, matrix: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
        return self.values @ matrix.diagonal()

    def sum(self, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, "K K"]:
        return torch.diag(self.values.sum(0) if weights is None else weights @ self.values)

    def __getitem__(self, rows: slice) -> DiagonalInformation:
        return DiagonalInformation(self.values[rows])


@dataclass(frozen=True, eq=False)
class SoftmaxInformation(Information):
    """``L_n = c (diag(p_n) - p_n p_n')`` for class probabilities ``p [N, K]`` and a number c."""

    probs: Float[Tensor, "N K"]
    factor: float = 1.0

    def times(self, vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        weighted = self.probs * vectors
        return self._scaled(torch.addcmul(weighted, self.probs, weighted.sum(-1, keepdim=True), value=-1))

    def diagonal(self) -> Float[Tensor, "N K"]:
        return self._scaled(self.probs * (1 - self.probs))

    def entry(self, row: int, column: int) -> Float[Tensor, " N"]:
        mine = self.probs[:, row]
        return self._scaled(mine * (1 - mine) if row == column else -mine * self.probs[:, column])

    def inner(self, matrix: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
        return self._scaled(self.probs @ matrix.diagonal() - ((self.probs @ matrix) * self.probs).sum(-1))

    def sum(self, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, "K K"]:
        weighted = self.probs if weights is None else weights[:, None] * self.probs
        return self._scaled(torch.diag(weighted.sum(0)) - weighted.mT @ self.probs)

    def __getitem__(self, rows: slice) -> SoftmaxInformation:
        return SoftmaxInformation(self.probs[rows], self.factor)

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self.factor == 1.0 else values * self.factor


@dataclass(frozen=True, eq=False)
class DenseInformation(Information):
    """Any matrices: ``values [N, K, K]``, symmetric and without negative eigenvalues."""

    values: Float[Tensor, "N K K"]

    def times(self, vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return (self.values @ vectors[..., None]).squeeze(-1)

    def diagonal(self) -> Float[Tensor, "N K"]:
        return self.values.diagonal(dim1=-2, dim2=-1)

    def entry(self, row: int, column: int) -> Float[Tensor, " N"]:
        return self.values[:, row, column]

    def inner(self, matrix: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
        return (self.values * matrix).sum((-2, -1))

    def sum(self, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, "K K"]:
        return self.values.sum(0) if weights is None else torch.einsum("n,nkl->kl", weights, self.values)

    def __getitem__(self, rows: slice) -> DenseInformation:
        return DenseInformation(self.values[rows])


@dataclass(frozen=True, eq=False)
class WeightedInformation(Information):
    """``w_n L_n`` for weights ``w [N]`` >= 0 of the rows."""

    rows: Information
    weight: Float[Tensor, " N"]

    @property
    def is_diagonal(self) -> bool:  # type: ignore[override]
        """As of the rows."""
        return self.rows.is_diagonal

    def times(self, vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return self.weight[:, None] * self.rows.times(vectors)

    def diagonal(self) -> Float[Tensor, "N K"]:
        return self.weight[:, None] * self.rows.diagonal()

    def entry(self, row: int, column: int) -> Float[Tensor, " N"]:
        return self.weight * self.rows.entry(row, column)

    def inner(self, matrix: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
        return self.weight * self.rows.inner(matrix)

    def sum(self, weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, "K K"]:
        return self.rows.sum(self.weight if weights is None else self.weight * weights)

    def __getitem__(self, rows: slice) -> WeightedInformation:
        return WeightedInformation(self.rows[rows], self.weight[rows])
