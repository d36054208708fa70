"""Real values whose noise depends on the input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.likelihoods.base import Likelihood, TargetShape
from bll_pyro.likelihoods.targets import check_varying, float_targets

MIN_LOG_SCALE = (
    -10.0
)  # smaller noise, relative to the targets' standard deviation, is not distinguished from rounding


@dataclass(frozen=True, eq=False)
class HeteroscedasticGaussian(Likelihood):
    """``y[t] ~ Normal(f[t], exp(f[T + t]))``: mean and log-scale of the noise are both linear in the features.

    Both are Bayesian, and the predictive mixes over both. Outputs are 2T: the T means, then the T log-scales.
    """

    real_valued: ClassVar[bool] = True
    closed_expectation: ClassVar[bool] = True

    def num_outputs(self, target_shape: TargetShape) -> int:
        """Two outputs for each target."""
        return 2 * math.prod(target_shape)

    def check_targets(self, targets: Tensor) -> Float[Tensor, "N T"]:
        """Finite real numbers ``[N, T]``."""
        return float_targets(targets, "HeteroscedasticGaussian")

    def check_training(self, targets: Float[Tensor, "N T"]) -> None:
        """Noise that is learned needs targets that vary."""
        check_varying(targets, "HeteroscedasticGaussian", "drop them, or use Gaussian(noise_scale=number)")

    def distribution(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """Independent Normals over the T targets of a row."""
        loc, log_scale = outputs.chunk(2, -1)
        return dist.Normal(loc, log_scale.clamp_min(MIN_LOG_SCALE).exp(), validate_args=False).to_event(1)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Float[Tensor, "N T"],
        generator: torch.Generator | None = None,
        **noise: Tensor,
    ) -> Float[Tensor, "*S N"]:
        """In closed form where a target's two outputs are independent, else at one draw.

        ``-E[s] - 0.5 E[exp(-2 s)] E[(y - f)^2]`` with ``E[exp(-2 s)] = exp(-2 m_s + 2 v_s)``.
        """
        if outputs.tied:
            return super().expected_log_prob(outputs, targets, generator, **noise)
        (loc, log_scale), (variance, spread) = outputs.mean.chunk(2, -1), outputs.variance.chunk(2, -1)
        square = (targets - loc).square() + variance
        precision = (-2 * log_scale + 2 * spread).clamp_max(-2 * MIN_LOG_SCALE).exp()
        return (-log_scale - 0.5 * precision * square - 0.5 * math.log(2 * math.pi)).sum(-1)

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """The log-scales are outputs: all of them are shifted by ``log factor``."""
        shift = torch.zeros_like(outputs.mean)
        shift[:, shift.shape[1] // 2 :] = math.log(factor)
        return self, outputs.shifted(shift), noise

    def output_curvature(self, outputs: Float[Tensor, "*S N K"], **noise: Tensor) -> Float[Tensor, "*S N K"]:
        """Expected negative Hessian: ``exp(-2 s)`` for the mean, 2 for the log-scale."""
        log_scale = outputs.chunk(2, -1)[1].clamp_min(MIN_LOG_SCALE)
        return torch.cat([(-2 * log_scale).exp(), torch.full_like(log_scale, 2.0)], -1)
