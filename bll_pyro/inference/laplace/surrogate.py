"""The evidence under a quadratic approximation of the log likelihood: no pass over the rows.

With the curvature S and the gradient g of the rows at weights A, the log likelihood is replaced by its second-order
expansion at A. The evidence then has a closed form for any Gaussian prior (Immer et al. 2021), which gives a first guess
of the prior scale without searching the mode again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bll_pyro.curvatures import Curvature
from bll_pyro.curvatures.base import Sums
from bll_pyro.gaussian.precision import quadratic
from bll_pyro.inference.laplace.prior_terms import PriorTerms

DIFFERENCE = 1e-3  # step of the central difference in psi
MIN_CURVATURE = 1e-2  # smallest curvature of the log evidence in a direction of psi


class Surrogate:
    """``log E_prior[exp(quadratic)]`` as a function of psi, up to a constant.

    Parameters
    ----------
    curvature, sums
        Structure of the precision, and S in this structure.
    linear
        ``S A + g``, ``[K, P]``.
    prior
        Function of psi that returns the terms of the prior and a summand of the log evidence.
    """

    def __init__(
        self,
        curvature: Curvature,
        sums: Sums,
        linear: Tensor,
        prior: Callable[[Tensor], tuple[PriorTerms, Tensor]],
    ) -> None:
        self.curvature, self.sums, self.linear, self.prior = curvature, sums, linear, prior

    def __call__(self, psi: Tensor) -> Tensor:
        terms, added = self.prior(psi)
        precision = self.curvature.precision(self.sums, terms.precision)
        right = self.linear + terms.times(terms.loc)
        mean = precision.solve(right.detach())
        # the mean maximises the quadratic, so its dependence on psi adds nothing to the gradient
        own = self.curvature.times(self.sums, mean)
        square = 2 * (right * mean).sum() - (mean * own).sum() - quadratic(terms.precision, mean)
        centre = quadratic(terms.precision, terms.loc)
        return added + terms.log_peak + 0.5 * (square - centre) - 0.5 * precision.log_det

    def value_and_gradient(self, psi: Tensor) -> tuple[float, Tensor]:
        """Value in nats and gradient ``[M]``."""
        point = psi.detach().requires_grad_()
        with torch.enable_grad():
            value = self(point)
            (gradient,) = torch.autograd.grad(value, point, materialize_grads=True, allow_unused=True)
        return float(value.detach()), gradient

    def curvature_at(self, psi: Tensor, indices: list[int]) -> Tensor:
        """Negative Hessian in some coordinates ``[n, n]``, by differences of the gradient, made positive definite."""
        rows = []
        for index in indices:
            step = torch.zeros_like(psi)
            step[index] = DIFFERENCE
            ahead, behind = self.value_and_gradient(psi + step)[1], self.value_and_gradient(psi - step)[1]
            rows.append((behind - ahead)[indices] / (2 * DIFFERENCE))
        matrix = torch.stack(rows)
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        return vectors * values.abs().clamp_min(MIN_CURVATURE) @ vectors.mT
