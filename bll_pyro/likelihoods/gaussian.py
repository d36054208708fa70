"""Real values with Gaussian noise: known, or with a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import is_number
from bll_pyro.gaussian import OutputGaussian, OutputMixture, Outputs
from bll_pyro.likelihoods.base import Likelihood, TargetShape, scale_site
from bll_pyro.likelihoods.gaussian_noise import GaussianNoise


@dataclass(frozen=True, eq=False)
class Gaussian(GaussianNoise):
    """Real-valued targets: ``y[t] ~ Normal(f[t], noise_scale[t])``.

    For noise that is correlated between the targets of a row see :class:`MultivariateGaussian`.

    Parameters
    ----------
    noise_scale
        A positive number, or one for each target: known noise, in the user's units. A Pyro distribution: its prior,
        on the scale of the standardised targets. None (default): the weak prior ``HalfNormal(1)`` on that scale,
        where the targets have standard deviation 1.
    """

    noise_scale: float | tuple[float, ...] | dist.Distribution | None = None

    def __post_init__(self) -> None:
        value = self.noise_scale
        if isinstance(value, list):
            object.__setattr__(self, "noise_scale", tuple(value))
            value = self.noise_scale
        if value is None or isinstance(value, torch.distributions.Distribution):
            return
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(is_number(v) for v in numbers):
            raise ValueError(
                f"Gaussian(noise_scale=...): expected a positive number, one for each target, a Pyro distribution "
                f"or None, got {value!r}; it is a standard deviation"
            )

    @property
    def known_noise(self) -> Float[Tensor, " *T"] | None:
        """Known noise as a tensor ``[]`` or ``[T]``, None where it has a prior."""
        if self.noise_scale is None or isinstance(self.noise_scale, torch.distributions.Distribution):
            return None
        return torch.as_tensor(self.noise_scale, dtype=torch.float64)

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output for each target."""
        num_targets = super().num_outputs(target_shape)
        if isinstance(self.noise_scale, tuple) and len(self.noise_scale) != num_targets:
            raise ValueError(
                f"Gaussian(noise_scale=...): expected one number for each of the {num_targets} targets, "
                f"got {len(self.noise_scale)}"
            )
        return num_targets

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``noise_scale [T]``, one for each target, unless it is known."""
        if self.known_noise is not None:
            return {}
        assert not isinstance(self.noise_scale, (int, float, tuple))
        return {"noise_scale": scale_site(self.noise_scale, math.prod(target_shape))}

    def in_units(self, scale: Float[Tensor, " T"]) -> Self:
        """Known noise is given in the user's units: divide it by the scale of the targets."""
        if self.known_noise is None:
            return self
        noise = (self.known_noise / scale.double()).expand(scale.shape).tolist()
        return replace(self, noise_scale=noise[0] if len(noise) == 1 else tuple(noise))

    def scale(
        self, outputs: Float[Tensor, "*#S N T"], noise_scale: Tensor | None = None, **_: Tensor
    ) -> Tensor:
        """Noise scale that broadcasts against outputs ``[..., N, T]``."""
        if noise_scale is not None:
            return noise_scale
        known = self.known_noise
        assert known is not None
        return known.to(outputs)

    def noise_covariance(
        self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor
    ) -> Float[Tensor, "... T T"]:
        """Diagonal ``[..., T, T]``."""
        variance = self.scale(outputs, **noise).square()
        return torch.diag_embed(variance.expand(*variance.shape[:-1], outputs.shape[-1]))

    def distribution(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> dist.Distribution:
        """Independent Normals over the T targets of a row."""
        return self.marginals(outputs, **noise).to_event(1)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Float[Tensor, "N T"],
        generator: torch.Generator | None = None,
        **noise: Tensor,
    ) -> Float[Tensor, "*S N"]:
        """In closed form: only the means and variances of the outputs matter."""
        scale = self.scale(outputs.mean, **noise)
        square = (targets - outputs.mean).square() + outputs.variance
        terms = -0.5 * square / scale.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return terms.sum(-1)

    def components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """For an :class:`OutputMixture`: one Normal for each of its weighted components, with the noise of the component."""
        if not isinstance(outputs, OutputMixture):
            return super().components(outputs, num_points, seed, **noise)
        variance = outputs.scale.square() + outputs.noise[:, None].square()
        return dist.Normal(outputs.loc, variance.sqrt(), validate_args=False)

    def predictive_log_prob(
        self, outputs: Outputs, targets: Float[Tensor, "N T"], num_points: int, seed: int = 0, **noise: Tensor
    ) -> Float[Tensor, " N"]:
        """For an :class:`OutputMixture`: targets are independent, each with a mixture of its own."""
        if not isinstance(outputs, OutputMixture):
            return super().predictive_log_prob(outputs, targets, num_points, seed, **noise)
        log_probs = self.components(outputs, num_points).log_prob(targets)
        return (log_probs + outputs.weights.log()[:, None]).logsumexp(0).sum(-1)

    def moments(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """For an :class:`OutputMixture`: averages over its weighted components."""
        if not isinstance(outputs, OutputMixture):
            return super().moments(outputs, num_points, seed, **noise)
        aleatoric = outputs.average(outputs.noise.square()[:, None])
        return outputs.mean, aleatoric.expand_as(outputs.mean), outputs.variance

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """Applied to known noise, to draws of it, or to the noise of the components of an :class:`OutputMixture`."""
        if isinstance(outputs, OutputMixture):
            outputs = replace(outputs, noise=outputs.noise * factor)
        known, likelihood = self.known_noise, self
        if known is not None:
            numbers = (known * factor).tolist()
            likelihood = replace(self, noise_scale=numbers if isinstance(numbers, float) else tuple(numbers))
        return likelihood, outputs, {name: value * factor for name, value in noise.items()}

    def expected_derivatives(
        self, draws: Float[Tensor, "S N T"], targets: Float[Tensor, "N T"], **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T T"]]:
        """``E[(y - f) / noise_scale^2]`` and ``diag(E[1 / noise_scale^2])``."""
        precision = self.scale(draws, **noise).square().reciprocal().expand_as(draws)
        return ((targets - draws) * precision).mean(0), torch.diag_embed(precision.mean(0))

    def output_curvature(self, outputs: Float[Tensor, "*S N T"], **noise: Tensor) -> Float[Tensor, "*S N T"]:
        """``1 / noise_scale^2``."""
        return self.scale(outputs, **noise).square().reciprocal().expand_as(outputs)
