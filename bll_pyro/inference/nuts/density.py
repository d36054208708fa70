"""The log joint density of a layer in the coordinates of a chain, computed without running the Pyro program.

============================================= ===================================================================
on paper                                      in code
============================================= ===================================================================
``u = u_0 + S v``                             global unknowns (noise, hyper-parameters), unconstrained
``A = a + r(u)^2 (m - a) + r(u) R z``         weights ``[K, P]``; ``a`` the prior's centre, R the whitening
``r(u)^2 = (l + s(u_0)^-2) / (l + s(u)^-2)``  stretch, elementwise; s the prior's scale, l the precision of a weight's
                                              likelihood; 1 without hyper-parameters
``log p(y, u, A) + sum log r(u)``             ``-LogDensity(x)``, up to a constant
============================================= ===================================================================

When the prior scale s is sampled, the conditional scale of a weight without information from the rows (l = 0) is
proportional to s, and that of a well determined weight does not depend on s; neither the centred nor the non-centred
parameterisation suits both (Papaspiliopoulos, Roberts and Skoeld 2007). The stretch is that of the conditional posterior
of one weight given s, with a Gaussian likelihood of precision l: mean and standard deviation of z are then the same at
every s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bll_pyro.gaussian.precision import times
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.nuts.row_terms import RowTerms
from bll_pyro.inference.nuts.whitening import Whitening
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.priors import GaussianPrior, ScaleMixturePrior
from bll_pyro.priors.base import centre

State = dict[str, Tensor]  # "weights": z [K P]; "globals": v [U], absent where U = 0


class LogPrior:
    """``log p(A | hyper)`` of weight and bias ``[K, P]`` in nats, float64, differentiable."""

    def __init__(self, layer: LastLayer, num_features: int, learned: dict[str, Tensor], like: Tensor) -> None:
        self.layer, self.num_features, self.learned, self.like = layer, num_features, learned, like
        self.fixed: PriorTerms | None = None
        if isinstance(layer.prior, GaussianPrior) and not layer.prior.hyper(self.shape):
            self.fixed = PriorTerms.of(layer, self.shape, learned, like).detach()

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, D)``."""
        return len(self.like), self.num_features

    def terms(self, hyper: dict[str, Tensor]) -> PriorTerms:
        """The quadratic log density of a prior that is Gaussian given its hyper-parameters."""
        return self.fixed or PriorTerms.of(self.layer, self.shape, {**self.learned, **hyper}, self.like)

    def __call__(self, weights: Tensor, hyper: dict[str, Tensor]) -> Tensor:
        """Log density ``[]`` of ``weights [K, P]``, in nats."""
        prior = self.layer.prior
        if isinstance(prior, GaussianPrior):
            return self.terms(hyper).log_prob(weights)
        weight, given = weights[:, : self.num_features], {**self.learned, **hyper}
        if isinstance(prior, ScaleMixturePrior):
            total = prior.log_prob_of_square((weight - centre(prior.loc, weight)).square(), **given).sum()
        else:
            total = prior.distribution(self.shape, **given).log_prob(weight).sum()
        if not self.layer.bias:
            return total
        scale = torch.tensor(self.layer.bias_scale, dtype=weights.dtype)
        ratio = (weights[:, -1] - self.layer.bias_center(weights[:, -1])) / scale
        return total - (0.5 * ratio.square() + scale.log() + 0.5 * LOG_TWO_PI).sum()


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Origin and scales of the chain's coordinates.

    Parameters
    ----------
    u
        Global unknowns ``u_0 [U]``.
    u_scale
        Their scales, the diagonal of S, ``[U]``.
    loc
        Weights m, ``[K, P]``, float64.
    whitening
        R, in the precision in which the rows are evaluated.
    known
        l ``[K, P]``, the likelihood's precision of each weight; None where the prior's scale is not sampled.
    """

    u: Tensor
    u_scale: Tensor
    loc: Tensor
    whitening: Whitening
    known: Tensor | None = None


class LogDensity:
    """Potential energy of a chain: ``-log p`` in nats as a function of its coordinates, differentiable once."""

    def __init__(
        self, layer: LastLayer, num_features: int, target_shape: TargetShape, terms: RowTerms,
        learned: dict[str, Tensor], coordinates: Coordinates, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.layer, self.terms, self.coordinates, self.dtype = layer, terms, coordinates, dtype
        loc = coordinates.loc
        self.global_sites = GlobalSites(layer, (len(loc), num_features), target_shape)
        self.prior = LogPrior(layer, num_features, learned, torch.zeros_like(loc))
        self.num_calls = 0
        self._quadratic: PriorTerms | None = None
        if self.prior.fixed is not None and not self.global_sites.num:
            parts = self.prior.fixed
            self._quadratic = replace(parts, loc=parts.loc.to(dtype), precision=parts.precision.to(dtype))
            self._loc = loc.to(dtype)
        if coordinates.known is not None:
            prior = self.prior.terms(self.global_sites.hyper(self.global_sites.constrain(coordinates.u)[0]))
            self._precision, self._center = (coordinates.known + prior.precision).detach(), prior.loc

    @property
    def shape(self) -> dict[str, int]:
        """Number of coordinates by name."""
        num_globals = {"globals": self.global_sites.num} if self.global_sites.num else {}
        return {**num_globals, "weights": self.coordinates.loc.numel()}

    def place(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Global unknowns ``u [U]``, weights ``A [K, P]`` and ``sum log r``."""
        at = self.coordinates
        step = at.whitening.apply(state["weights"].to(self.dtype)).to(at.loc)
        if not self.global_sites.num:
            return at.u, at.loc + step, at.loc.new_zeros(())
        u = at.u + at.u_scale * state["globals"]
        if at.known is None:
            return u, at.loc + step, at.loc.new_zeros(())
        terms = self.prior.terms(self.global_sites.hyper(self.global_sites.constrain(u)[0]))
        square = self._precision / (at.known + terms.precision)
        weights = self._center + square * (at.loc - self._center) + square.sqrt() * step
        return u, weights, 0.5 * square.log().sum()

    def log_joint(self, u: Tensor, weights: Tensor) -> Tensor:
        """``log p(y, u, A)`` in nats, of standardised targets, with the log Jacobian of the global unknowns."""
        if not self.global_sites.num:
            return self.terms.log_prob(weights, {}) + self.prior(weights, {})
        values, log_density, log_jacobian = self.global_sites.constrain(u)
        rows = self.terms.log_prob(weights, self.global_sites.noise(values))
        return rows + self.prior(weights, self.global_sites.hyper(values)) + log_density + log_jacobian

    def __call__(self, state: State) -> Tensor:
        """``-log p`` of the coordinates, up to a constant."""
        self.num_calls += 1
        if self._quadratic is not None:
            return _Potential.apply(self, state["weights"])
        u, weights, log_stretch = self.place(state)
        return -(self.log_joint(u, weights) + log_stretch)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(y, A)`` and its gradient in z, in closed form for a fixed Gaussian prior and no other unknowns.

        A third faster than automatic differentiation where one gradient takes a millisecond.
        """
        assert self._quadratic is not None
        whitening, prior = self.coordinates.whitening, self._quadratic
        weights = self._loc + whitening.apply(z.to(self.dtype))
        value, gradient, _ = self.terms(weights, {})
        distance = weights - prior.loc
        prior_gradient = times(prior.precision, distance)  # of the negative log prior
        value = value + prior.log_peak - 0.5 * (distance * prior_gradient).sum(dtype=torch.float64)
        return value, whitening.back(gradient.to(self.dtype) - prior_gradient).to(z)


class _Potential(torch.autograd.Function):
    """``-log p`` of a density for autograd, with the gradient computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, density: LogDensity, z: Tensor) -> Tensor:
        value, gradient = density.value_and_gradient(z)
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, -grad * ctx.saved_tensors[0]
