"""What a prior is: hyper-parameters with priors of their own, and the distribution of the weight given them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro.declaration import Declaration
from bll_pyro.frame import Frame
from bll_pyro.gaussian import WeightGaussian

Shape = tuple[int, int]


class Prior(Declaration):
    """Prior of the weight matrix ``[K, D]``, on the scale of the standardised features.

    A member of the family says three things: which hyper-parameters are sampled (``hyper``), which are learned by
    raising the ELBO or the evidence (``learned``), and the elementwise distribution of the weight given both
    (``distribution``). The Pyro program (``sample``) and the densities follow from them. A prior that is not of this
    form overrides ``sample``; it then runs on Pyro's general path, and inferences that need a density refuse it.
    """

    family: ClassVar[str] = "priors"

    def hyper(self, shape: Shape) -> dict[str, dist.Distribution]:
        """Sampled hyper-parameters by name, with their priors (all dimensions in the event)."""
        return {}

    def learned(self, shape: Shape) -> dict[str, Tensor]:
        """Initial values of positive hyper-parameters that have no prior: they maximise the ELBO (empirical Bayes)."""
        return {}

    @abstractmethod
    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Distribution:
        """Distribution of the weight given its hyper-parameters, elementwise: batch shape ``[..., K, D]``.

        Hyper-parameters may carry leading axes (vectorised particles), so trailing axes are written out:
        ``tau[..., None, None]``.
        """

    @property
    def isotropic(self) -> bool:
        """Whether a rotation of the features leaves the prior as it is; then the guide may choose its axes."""
        return False

    def sample(self, shape: Shape, **learned: Tensor) -> Tensor:
        """The Pyro program: sample the hyper-parameters, then the site ``weight``."""
        hyper = {name: pyro.sample(name, prior) for name, prior in self.hyper(shape).items()}
        return pyro.sample("weight", self.distribution(shape, **learned, **hyper).to_event(2))

    @property
    def has_density(self) -> bool:
        """Whether the log density follows from ``hyper`` and ``distribution`` (``sample`` is not overridden)."""
        return type(self).sample is Prior.sample

    @property
    def covers_bias(self) -> bool:
        """Whether it is one joint prior of weight and bias, in the coordinates of its ``frame``.

        Such a prior has ``expected_log_prob_of`` and ``sample_bias`` in place of ``distribution``.
        """
        return False

    @property
    def frame(self) -> Frame | None:
        """Coordinates that the prior brings along; None where it takes those of the fit."""
        return None

    def expected_log_prob_of(self, weights: WeightGaussian) -> Tensor:
        """``E_q[log p(weight, bias)]`` for weights q in the frame, where the prior covers the bias."""
        raise NotImplementedError(f"{type(self).__name__} is a prior of single weights; use expected_log_prob")

    def sample_bias(self, weight: Tensor) -> Tensor:
        """The Pyro program, continued: sample the site ``bias`` given the weight, where the prior covers it."""
        raise NotImplementedError(f"{type(self).__name__} is a prior of the weight alone")

    def expected_log_prob(self, loc: Tensor, scale: Tensor, noise: Tensor | None = None, **hyper: Tensor) -> Tensor:
        """``E_q[log p(weight | hyper)]`` for Normal marginals ``loc, scale [K, D]``, summed over all weights.

        In closed form where Pyro knows the KL divergence, else at one draw ``loc + scale * noise``. Only marginals
        matter, whatever the covariance of the guide, since the log prior is a sum over weights.
        """
        prior = self.distribution((loc.shape[-2], loc.shape[-1]), **hyper)
        closed = self._closed_form(prior, loc, scale)
        if closed is not None:
            return closed.sum()
        value = loc if noise is None else loc + scale * noise
        return prior.log_prob(value).sum()

    @property
    def needs_noise(self) -> bool:
        """Whether ``expected_log_prob`` has no closed form."""
        return True

    def _closed_form(self, prior: dist.Distribution, loc: Tensor, scale: Tensor) -> Tensor | None:
        return None

    def learn(self, loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Values of the ``learned`` hyper-parameters that maximise ``expected_log_prob`` at these marginals."""
        if self.learned((loc.shape[-2], loc.shape[-1])):
            raise NotImplementedError(f"{type(self).__name__} declares learned hyper-parameters but no update")
        return {}


class GaussianPrior(Prior):
    """A prior whose weights are Normal given the hyper-parameters: everything about it is in closed form."""

    @abstractmethod
    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Normal:
        """Normal distribution of the weight given its hyper-parameters, batch shape ``[..., K, D]``."""

    @property
    def needs_noise(self) -> bool:
        """Whether ``expected_log_prob`` has no closed form."""
        return False

    def _closed_form(self, prior: dist.Distribution, loc: Tensor, scale: Tensor) -> Tensor:
        second_moment = (loc - prior.loc).square() + scale.square()
        return prior.log_prob(prior.loc) - 0.5 * second_moment / prior.scale.square()


def positive(value: float | None, name: str, owner: str) -> None:
    """Raise if a scale is neither None nor a positive finite number."""
    if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
        raise ValueError(f"{owner}({name}=...): expected a positive number, got {value!r}; a scale is a standard deviation")


def expand(value: Tensor | float, shape: Shape) -> Tensor:
    """Expand a number or tensor to the weight's shape, keeping leading axes."""
    tensor = torch.as_tensor(value)
    return tensor.expand(torch.broadcast_shapes(tensor.shape, shape))
