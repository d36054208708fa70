"""Treatments of an unknown noise scale in exact inference: integrate it out, conjugate or not, or maximize the evidence.

================ =========================================== =====================================================
``Exact(noise=`` prior of the noise                          prior of weights and bias
================ =========================================== =====================================================
``Integrated()`` the declared one (HalfNormal by default)    as declared; noise integrated by quadrature
``Conjugate()``  ``noise^2 ~ InverseGamma(shape, rate)``     declared scales times the noise: Normal-inverse-gamma
``Maximized()``  none: the evidence is maximised (MacKay)    as declared; the noise is a learned number
================ =========================================== =====================================================
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from bll_pyro.checks import positive
from bll_pyro.declaration import Declaration
from bll_pyro.inference.exact.linear_gaussian import LinearGaussian
from bll_pyro.inference.exact.one_dimension import Nodes, maximize, quadrature

__all__ = ["Conjugate", "Integrated", "Maximized"]

NUM_TABLE = 2049  # points in the table of a distribution function
LOG_NOISE_RANGE = (-17.0, 3.0)  # range of the log noise scale in a search, relative to the targets' log scale


class NoiseTreatment(Declaration):
    """A way to treat the unknown noise scale of each target."""

    family: ClassVar[str] = "noises"
    relative: ClassVar[bool] = False

    @abstractmethod
    def components(
        self, model: LinearGaussian, prior_scale: Tensor, prior: NoisePrior, near: Nodes | None = None
    ) -> Components:
        """Noise values and weights that represent the noise posterior, given the prior scale ``[..., T]`` of the weights.

        ``near`` is the quadrature rule of a prior scale that may be near, for a search: it is moved, and not checked again.
        """

    def prior(self, declared: dist.Distribution) -> NoisePrior:
        """Prior of one target's noise scale that this treatment uses."""
        return NoisePrior(declared)


@dataclass(frozen=True)
class NoisePrior:
    """Prior of the noise scale of each target, in an unbounded coordinate ``u``; batch shape ``[T]`` or ``[]``."""

    distribution: dist.Distribution

    def noise(self, u: Tensor) -> Tensor:
        """Noise scale at u."""
        # the transform may round to 0 or infinity at the ends of the range
        values: Tensor = self._transform(u)
        return values.clamp(torch.finfo(u.dtype).tiny ** 0.25, torch.finfo(u.dtype).max ** 0.25)

    def log_density(self, u: Tensor) -> Tensor:
        """Log density in u."""
        noise = self.noise(u)
        return self.distribution.log_prob(noise) + self._transform.log_abs_det_jacobian(u, noise)

    @cached_property
    def _transform(self) -> torch.distributions.Transform:
        return biject_to(self.distribution.support)


class RootInverseGamma(dist.TorchDistribution):
    """Distribution of ``s`` where ``s^2 ~ InverseGamma(shape, rate)``."""

    support = constraints.positive
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, shape: float, rate: float, batch_shape: tuple[int, ...] = ()) -> None:
        self.shape, self.rate = shape, rate
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of s, with the factor 2 s of the change from the square."""
        constant = math.log(2) + self.shape * math.log(self.rate) - math.lgamma(self.shape)
        return constant - (2 * self.shape + 1) * value.log() - self.rate / value.square()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw s."""
        shape = torch.Size(sample_shape) + self.batch_shape
        gamma = torch.distributions.Gamma(torch.tensor(self.shape, dtype=torch.float64), 1.0).sample(shape)
        return (self.rate / gamma).sqrt()

    def expand(self, batch_shape: Any, _instance: Any = None) -> RootInverseGamma:
        """Independent copies."""
        return RootInverseGamma(self.shape, self.rate, tuple(batch_shape))


@dataclass(frozen=True)
class Components:
    """M values of each target's noise scale ``[M, ..., T]``, with the log of prior density times quadrature weight.

    ``nodes`` is the quadrature rule, or None where the noise scale is one number.
    """

    noise: Tensor
    log_weight: Tensor
    nodes: Nodes | None = None

    def log_evidence(self, model: LinearGaussian, prior_scale: Tensor) -> Tensor:
        """``log p(y_t | prior scale)`` of each target ``[..., T]``, differentiable in the prior scale."""
        return (self.log_weight + model.log_evidence(self.noise, prior_scale)).logsumexp(0)

    def weights(self, model: LinearGaussian, prior_scale: Tensor) -> Tensor:
        """Posterior weights ``[M, T]`` of the values, which sum to 1."""
        return (self.log_weight + model.log_evidence(self.noise, prior_scale)).softmax(0)


@dataclass(frozen=True, eq=False)
class Integrated(NoiseTreatment):
    """The declared prior of the noise scale, integrated out numerically: exact up to rounding.

    Given the noise scale all else has a closed form, so one one-dimensional integral remains for each target.
    """

    def components(
        self, model: LinearGaussian, prior_scale: Tensor, prior: NoisePrior, near: Nodes | None = None
    ) -> Components:
        """Nodes of the trapezoid rule."""
        detached = prior_scale.detach()

        def log_joint(u: Tensor) -> Tensor:
            u = u.view(-1, *detached.shape)
            return (prior.log_density(u) + model.log_evidence(prior.noise(u), detached)).flatten(1)

        nodes = quadrature(log_joint, detached.numel(), near=near)
        u, log_step = (value.view(-1, *detached.shape) for value in nodes.points())
        return Components(prior.noise(u), prior.log_density(u) + log_step, nodes)


@dataclass(frozen=True, eq=False)
class Conjugate(Integrated):
    """The Normal-inverse-gamma model: ``noise^2 ~ InverseGamma(shape, rate)``, and all prior scales times the noise.

    This replaces the likelihood's prior of the noise, and ``Normal(scale)`` and ``bias_scale`` mean multiples of the
    noise. The predictive is Student's t with ``2 shape + N`` degrees of freedom.

    Parameters
    ----------
    shape, rate
        Parameters of the prior of the noise variance, on the scale of the standardised targets. The prior counts as
        much as ``2 shape`` rows with mean square ``rate / shape``.

    Raises
    ------
    ValueError
        If one of them is not a positive number.
    """

    shape: float = 1.0
    rate: float = 0.1
    relative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("shape", "rate"):
            positive(getattr(self, name), name, "Conjugate")

    def prior(self, declared: dist.Distribution) -> NoisePrior:
        """Square root of an inverse gamma."""
        return NoisePrior(RootInverseGamma(float(self.shape), float(self.rate)))


@dataclass(frozen=True, eq=False)
class Maximized(NoiseTreatment):
    """The noise scale that maximises the evidence (type-II maximum likelihood; MacKay 1992), then taken as known.

    The declared prior of the noise is not used. Cheaper than :class:`Integrated`, with a Gaussian posterior, but
    without the uncertainty about the noise scale, which matters with few rows.
    """

    def components(
        self, model: LinearGaussian, prior_scale: Tensor, prior: NoisePrior, near: Nodes | None = None
    ) -> Components:
        """One value."""
        detached = prior_scale.detach()
        center = model.target_scale.log().expand_as(detached).reshape(-1)

        def log_evidence(log_noise: Tensor) -> Tensor:
            noise = log_noise.exp().unflatten(-1, detached.shape)
            return model.log_evidence(noise, detached).flatten(-detached.dim())

        found = maximize(log_evidence, center + LOG_NOISE_RANGE[0], center + LOG_NOISE_RANGE[1])
        noise = found.argument.exp().view(1, *detached.shape)
        return Components(noise, torch.zeros_like(noise))


@dataclass(frozen=True, eq=False)
class _Known(NoiseTreatment):
    """A noise scale that the likelihood gives; chosen by ``Exact`` itself, not by the user."""

    scale: tuple[float, ...]

    def components(
        self, model: LinearGaussian, prior_scale: Tensor, prior: NoisePrior, near: Nodes | None = None
    ) -> Components:
        """The known value."""
        noise = torch.tensor(self.scale, dtype=torch.float64).expand_as(prior_scale)[None]
        return Components(noise, torch.zeros_like(noise))


@dataclass(frozen=True, eq=False)
class NoisePosterior:
    """Posterior of each target's noise scale as a tabulated distribution function, for draws.

    Parameters
    ----------
    u
        Unbounded coordinate, ``[M, T]``.
    cumulative
        Distribution function at ``u``, ``[M, T]``.
    """

    prior: NoisePrior
    u: Tensor
    cumulative: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: LinearGaussian, prior_scale: Tensor, prior: NoisePrior, components: Components
    ) -> NoisePosterior:
        """Tabulate the distribution function at ``NUM_TABLE`` points."""
        assert components.nodes is not None
        u, log_step = replace(components.nodes, num=NUM_TABLE).points()
        mass = prior.log_density(u) + model.log_evidence(prior.noise(u), prior_scale) + log_step
        mass = (mass - mass.amax(0)).exp()
        cumulative = torch.cat([torch.zeros_like(mass[:1]), ((mass[1:] + mass[:-1]) / 2).cumsum(0)])
        return cls(prior, u, cumulative / cumulative[-1])

    def quantile(self, prob: Tensor) -> Tensor:
        """Noise scales at probabilities ``[S, T]``, by linear interpolation in ``u``."""
        table, level = self.cumulative.mT.contiguous(), prob.double().mT.contiguous()
        above = torch.searchsorted(table, level).clamp(1, table.shape[1] - 1)
        high, low = table.gather(1, above), table.gather(1, above - 1)
        share = (level - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        u = self.u.mT.contiguous()
        left, right = u.gather(1, above - 1), u.gather(1, above)
        return self.prior.noise((left + share.clamp(0, 1) * (right - left)).mT)


def elementwise(declared: dist.Distribution) -> dist.Distribution | None:
    """One target's prior from the site's prior over all targets; None where targets depend on each other."""
    independent = isinstance(declared, torch.distributions.Independent) and not declared.base_dist.event_shape
    return declared.base_dist if independent else None


def is_positive(prior: dist.Distribution) -> bool:
    """Whether the prior is continuous over positive numbers."""
    support = prior.support
    lower = getattr(support, "lower_bound", -math.inf)
    return bool(torch.as_tensor(lower).min() >= 0) and not support.is_discrete
