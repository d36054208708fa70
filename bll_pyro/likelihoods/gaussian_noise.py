"""What likelihoods with Gaussian noise share: with Gaussian outputs their predictives are in closed form."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.targets import check_varying, float_targets


class GaussianNoise(Likelihood):
    """Real-valued targets ``y ~ Normal(f, covariance)``, where the covariance ``[T, T]`` does not depend on the row.

    A member defines the covariance. Noise is one value, or draws ``[S, 1, ...]`` that broadcast against the rows.
    """

    real_valued: ClassVar[bool] = True
    closed_expectation: ClassVar[bool] = True

    @abstractmethod
    def scale(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> Tensor:
        """Standard deviation of each target's noise; broadcasts against outputs ``[..., N, T]``."""

    @abstractmethod
    def noise_covariance(
        self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor
    ) -> Float[Tensor, "... T T"]:
        """Covariance ``[T, T]`` of the noise, or ``[S, 1, T, T]`` for draws of it."""

    def check_targets(self, targets: Tensor) -> Float[Tensor, "N T"]:
        """Finite real numbers ``[N, T]``."""
        return float_targets(targets, type(self).__name__)

    def check_training(self, targets: Float[Tensor, "N T"]) -> None:
        """Noise that is learned needs targets that vary."""
        if self.sites((targets.shape[1],)):
            check_varying(targets, type(self).__name__, "drop them, or declare known noise")

    def marginals(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> dist.Distribution:
        """A Normal for each target."""
        return dist.Normal(outputs, self.scale(outputs, **noise), validate_args=False)

    def components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """Outputs integrated out in closed form: one Normal for each draw of the noise."""
        if not isinstance(outputs, OutputGaussian):
            return super().components(outputs, num_points, seed, **noise)
        variance = outputs.variance + self.scale(outputs.mean, **noise).square()
        variance = variance if variance.dim() == 3 else variance[None]
        return dist.Normal(outputs.mean.expand_as(variance), variance.sqrt(), validate_args=False)

    def joint_components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """Outputs integrated out in closed form: the covariance of a row's targets is that of its outputs and the noise."""
        if not isinstance(outputs, OutputGaussian):
            return super().joint_components(outputs, num_points, seed, **noise)
        if self.independent_targets and not outputs.tied:
            return self.components(outputs, num_points, seed, **noise).to_event(1)
        covariance = outputs.covariance + self.noise_covariance(outputs.mean, **noise)
        covariance = covariance if covariance.dim() == 4 else covariance[None]
        return dist.MultivariateNormal(outputs.mean, covariance, validate_args=False)

    def choose(self, parts: dist.Distribution, chosen: Tensor, *_: Any, **__: Any) -> dist.Distribution:
        """By means and covariances, also where the outputs are integrated out."""
        return select(parts, chosen)

    def predictive_log_prob(
        self, outputs: Outputs, targets: Float[Tensor, "N T"], num_points: int, seed: int = 0, **noise: Tensor
    ) -> Float[Tensor, " N"]:
        """In closed form over the outputs; a mixture over the noise."""
        log_probs = self.joint_components(outputs, num_points, seed, **noise).log_prob(targets)
        return torch.logsumexp(log_probs, 0) - math.log(len(log_probs))

    def moments(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """In closed form: mean and variance of the outputs, and the mean of the squared noise."""
        square = self.scale(outputs.mean, **noise).square()
        aleatoric = square.mean(0) if square.dim() == 3 else square
        return outputs.mean, aleatoric.expand_as(outputs.mean), outputs.variance


def select(parts: Any, chosen: Int[Tensor, "draws ..."]) -> dist.Distribution:
    """Of Normals with batch shape ``[S, ...]`` the components ``chosen [num_draws, ...]``."""
    if isinstance(parts, dist.Independent):
        chosen = chosen[..., None].expand(*chosen.shape, *parts.event_shape)
        return select(parts.base_dist, chosen).to_event(1)
    places = torch.meshgrid(*[torch.arange(n, device=chosen.device) for n in chosen.shape], indexing="ij")[1:]
    index = (chosen, *places)
    if isinstance(parts, dist.MultivariateNormal):
        loc, tril = parts.loc[index], parts.scale_tril.expand(*parts.batch_shape, -1, -1)[index]
        return dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
    return dist.Normal(parts.loc[index], parts.scale[index], validate_args=False)
