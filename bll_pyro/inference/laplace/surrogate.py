"""The evidence of the linear Gaussian model that touches the rows' likelihood at one point: no pass over the rows.

With the curvature S of the rows and their gradient g at weights A, the log likelihood is taken as the quadratic that
agrees with it there. Then the evidence is in closed form for any prior (Immer et al. 2021), which tells where to look
for the best prior scale before the mode is sought there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bll_pyro.curvatures import Curvature
from bll_pyro.curvatures.base import Sums
from bll_pyro.gaussian.precision import quadratic
from bll_pyro.inference.laplace.prior_terms import PriorTerms

DIFFERENCE = 1e-3


class Surrogate:
    """``log E_prior[exp(quadratic)]`` as a function of psi, up to a constant.

    Parameters
    ----------
    curvature, sums
        S.
    linear
        ``S A + g``, ``[K, P]``.
    prior
        Terms of the prior, and what else is added, at psi.
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
        # at its maximum over the mean a quadratic may be differentiated as if the mean stood still
        own = self.curvature.times(self.sums, mean)
        square = 2 * (right * mean).sum() - (mean * own).sum() - quadratic(terms.precision, mean)
        centre = quadratic(terms.precision, terms.loc)
        return added + terms.log_peak + 0.5 * (square - centre) - 0.5 * precision.log_det

    def value_and_slope(self, psi: Tensor) -> tuple[float, Tensor]:
        """Value and slope ``[M]``."""
        point = psi.detach().requires_grad_()
        with torch.enable_grad():
            value = self(point)
            (slope,) = torch.autograd.grad(value, point, materialize_grads=True, allow_unused=True)
        return float(value.detach()), slope

    def curvature_at(self, psi: Tensor, indices: list[int]) -> Tensor:
        """Negative second derivatives in some coordinates, made positive, ``[n, n]``, by differences of the slope."""
        rows = []
        for index in indices:
            step = torch.zeros_like(psi)
            step[index] = DIFFERENCE
            ahead, behind = self.value_and_slope(psi + step)[1], self.value_and_slope(psi - step)[1]
            rows.append((behind - ahead)[indices] / (2 * DIFFERENCE))
        matrix = torch.stack(rows)
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        return vectors * values.abs().clamp_min(1e-2) @ vectors.mT
