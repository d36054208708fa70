"""A Gaussian over weights that is diagonal in the product of two bases: a Kronecker product and a prior added up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.outputs import OutputGaussian
from bll_pyro.gaussian.weights import WeightGaussian, standard_normals


@dataclass(frozen=True, eq=False)
class Kronecker(WeightGaussian):
    """``A = loc + U (scale * E) V'`` with standard normals E ``[K, P]``.

    A precision ``A (x) B + I`` is diagonal in the eigenvectors of its factors, and so is every function of it
    (Ritter, Botev and Barber 2018): K^2 + P^2 numbers, and never (K P)^2.

    Parameters
    ----------
    scale
        Standard deviations in the bases, ``[K, P]``.
    row_basis, column_basis
        U ``[K, K]`` over the outputs and V ``[P, P]`` over the columns; they need not be orthogonal.
    """

    scale: Float[Tensor, "K P"]
    row_basis: Float[Tensor, "K K"]
    column_basis: Float[Tensor, "P P"]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        variance = (design @ self.column_basis).square() @ self.scale.square().mT
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return OutputGaussian(design @ self.loc.mT, scale, mixing=self.row_basis)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        return (self.row_basis.square() @ self.scale.square() @ self.column_basis.square().mT).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = self.scale * standard_normals((num_draws, *self.loc.shape), self.loc, generator)
        return self.loc + self.row_basis @ noise @ self.column_basis.mT

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        inside = torch.linalg.solve(self.row_basis, values - self.loc)
        inside = torch.linalg.solve(self.column_basis, inside.mT).mT
        return self._normal_log_prob(inside / self.scale, self._log_det_scale())

    def _log_det_scale(self) -> Float[Tensor, ""]:
        num_outputs, num_columns = self.loc.shape
        rows, columns = (
            torch.linalg.slogdet(basis).logabsdet for basis in (self.row_basis, self.column_basis)
        )
        return self.scale.log().sum() + num_columns * rows + num_outputs * columns
