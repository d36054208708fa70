"""Real values with Gaussian noise: known, or with a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro.gaussian import OutputGaussian, OutputMixture, Outputs
from bll_pyro.likelihoods.base import Likelihood, TargetShape, describe, float_targets


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """Real-valued targets: ``y[t] ~ Normal(f[t], noise_scale[t])``.

    Parameters
    ----------
    noise_scale
        A positive number, or one for each target: known noise, in the user's units. A Pyro distribution: its prior,
        on the scale of the standardised targets. None (default): the weak prior ``HalfNormal(1)`` on that scale,
        where the targets have standard deviation 1.
    """

    noise_scale: float | tuple[float, ...] | dist.Distribution | None = None
    real_valued: ClassVar[bool] = True

    def __post_init__(self) -> None:
        value = self.noise_scale
        if isinstance(value, list):
            object.__setattr__(self, "noise_scale", tuple(value))
            value = self.noise_scale
        if value is None or isinstance(value, torch.distributions.Distribution):
            return
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in numbers):
            raise ValueError(
                f"Gaussian(noise_scale=...): expected a positive number, one for each target, a Pyro distribution "
                f"or None, got {describe(value)}; it is a standard deviation"
            )

    @property
    def known_noise(self) -> Tensor | None:
        """Known noise as a tensor ``[]`` or ``[T]``, None where it has a prior."""
        if self.noise_scale is None or isinstance(self.noise_scale, torch.distributions.Distribution):
            return None
        return torch.as_tensor(self.noise_scale, dtype=torch.float64)

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output for each target."""
        num_targets = math.prod(target_shape)
        if isinstance(self.noise_scale, tuple) and len(self.noise_scale) != num_targets:
            raise ValueError(
                f"Gaussian(noise_scale=...): expected one number for each of the {num_targets} targets, "
                f"got {len(self.noise_scale)}"
            )
        return num_targets

    def check_targets(self, targets: Tensor) -> Tensor:
        """Finite real numbers ``[N, T]``."""
        return float_targets(targets, "Gaussian")

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``noise_scale [T]``, one for each target, unless it is known."""
        if self.known_noise is not None:
            return {}
        prior: Any = dist.HalfNormal(torch.tensor(1.0)) if self.noise_scale is None else self.noise_scale
        if not prior.event_shape:
            prior = prior.expand((math.prod(target_shape),)).to_event(1)
        return {"noise_scale": prior}

    def in_units(self, scale: Tensor) -> Self:
        """Known noise is given in the user's units: divide it by the scale of the targets."""
        if self.known_noise is None:
            return self
        noise = (self.known_noise / scale.double()).expand(scale.shape).tolist()
        return replace(self, noise_scale=noise[0] if len(noise) == 1 else tuple(noise))

    def scale(self, outputs: Tensor, noise_scale: Tensor | None = None) -> Tensor:
        """Noise scale that broadcasts against outputs ``[..., N, T]``."""
        if noise_scale is not None:
            return noise_scale
        known = self.known_noise
        assert known is not None
        return known.to(outputs)

    def distribution(
        self, outputs: Tensor, noise_scale: Tensor | None = None, **_: Tensor
    ) -> dist.Distribution:
        """Independent Normals over the T targets of a row."""
        return dist.Normal(outputs, self.scale(outputs, noise_scale), validate_args=False).to_event(1)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Tensor,
        generator: torch.Generator | None = None,
        **noise: Tensor,
    ) -> Tensor:
        """In closed form: only the means and variances of the outputs matter."""
        scale = self.scale(outputs.mean, **noise)
        square = (targets - outputs.mean).square() + outputs.variance
        terms = -0.5 * square / scale.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return terms.sum(-1)

    def components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """Outputs integrated out in closed form: one Normal for each draw of the noise.

        Of an :class:`OutputMixture`, which brings its noise along, one for each of its (weighted) components.
        """
        if isinstance(outputs, OutputMixture):
            variance = outputs.scale.square() + outputs.noise[:, None].square()
            return dist.Normal(outputs.loc, variance.sqrt(), validate_args=False)
        if not isinstance(outputs, OutputGaussian):
            return super().components(outputs, num_points, seed, **noise)
        scale = self.scale(outputs.mean, **noise)
        variance = outputs.variance + scale.square()
        variance = variance if variance.dim() == 3 else variance[None]
        return dist.Normal(outputs.mean.expand_as(variance), variance.sqrt(), validate_args=False)

    def predictive_log_prob(
        self, outputs: Outputs, targets: Tensor, num_points: int, seed: int = 0, **noise: Tensor
    ) -> Tensor:
        """In closed form over the outputs, with their covariance between targets; a mixture over the noise."""
        if isinstance(outputs, OutputMixture):  # targets are independent, each with a mixture of its own
            log_probs = self.components(outputs, num_points).log_prob(targets)
            return (log_probs + outputs.weights.log()[:, None]).logsumexp(0).sum(-1)
        if not isinstance(outputs, OutputGaussian):
            return super().predictive_log_prob(outputs, targets, num_points, seed, **noise)
        if outputs.num_outputs == 1 or (outputs.mixing is None and outputs.factor is None):
            log_probs = self.components(outputs, num_points, seed, **noise).log_prob(targets).sum(-1)
        else:
            scale = self.scale(outputs.mean, **noise).expand(*self._batch(noise), outputs.num_outputs)
            covariance = outputs.covariance + torch.diag_embed(scale.square())
            joint = dist.MultivariateNormal(outputs.mean, covariance, validate_args=False)
            log_probs = joint.log_prob(targets)
            log_probs = log_probs if log_probs.dim() == 2 else log_probs[None]
        return torch.logsumexp(log_probs, 0) - math.log(len(log_probs))

    def moments(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In closed form: mean and variance of the outputs, and the mean of the squared noise."""
        if isinstance(outputs, OutputMixture):
            aleatoric = outputs.average(outputs.noise.square()[:, None])
            return outputs.mean, aleatoric.expand_as(outputs.mean), outputs.variance
        square = self.scale(outputs.mean, **noise).square()
        aleatoric = square.mean(0) if square.dim() == 3 else square
        return outputs.mean, aleatoric.expand_as(outputs.mean), outputs.variance

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """Known noise, draws of it, or the noise that exact outputs bring along."""
        if isinstance(outputs, OutputMixture):
            outputs = replace(outputs, noise=outputs.noise * factor)
        known, likelihood = self.known_noise, self
        if known is not None:
            numbers = (known * factor).tolist()
            likelihood = replace(self, noise_scale=numbers if isinstance(numbers, float) else tuple(numbers))
        return likelihood, outputs, {name: value * factor for name, value in noise.items()}

    def _batch(self, noise: dict[str, Tensor]) -> tuple[int, ...]:
        return tuple(noise["noise_scale"].shape[:-1]) if noise else (1,)

    def expected_derivatives(self, draws: Tensor, targets: Tensor, **noise: Tensor) -> tuple[Tensor, Tensor]:
        """``E[(y - f) / noise_scale^2]`` and ``diag(E[1 / noise_scale^2])``."""
        precision = self.scale(draws, **noise).square().reciprocal().expand_as(draws)
        return ((targets - draws) * precision).mean(0), torch.diag_embed(precision.mean(0))

    def output_curvature(self, outputs: Tensor, **noise: Tensor) -> Tensor:
        """``1 / noise_scale^2``."""
        return self.scale(outputs, **noise).square().reciprocal().expand_as(outputs)
