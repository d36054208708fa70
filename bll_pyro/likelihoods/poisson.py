"""Counts whose variance is their mean."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import OutputGaussian
from bll_pyro.likelihoods.counts import Counts, exposed
from bll_pyro.likelihoods.special import poisson_cdf


class PoissonCounts(dist.Poisson):
    """Pyro's Poisson, with its distribution function."""

    def cdf(self, value: Float[Tensor, " *#S"]) -> Float[Tensor, " *#S"]:
        """``P(Y <= value)``: the regularised upper incomplete gamma function."""
        if torch.compiler.is_compiling():  # a graph has torch's arithmetic only
            return poisson_cdf(value, self.rate)
        count = value.floor()
        tail = torch.special.gammaincc(
            count.clamp_min(0) + 1, self.rate.expand(torch.broadcast_shapes(count.shape, self.rate.shape))
        )
        return torch.where(count < 0, torch.zeros_like(tail), tail)


@dataclass(frozen=True, eq=False)
class Poisson(Counts):
    """Counts: ``y[t] ~ Poisson(exposure exp(f[t]))``; targets are whole numbers >= 0, ``[N]`` or ``[N, T]``."""

    def distribution(
        self, outputs: Float[Tensor, "*#S N T"], exposure: Tensor | None = None, **_: Tensor
    ) -> dist.Distribution:
        """Independent Poissons over the T counts of a row."""
        return PoissonCounts(exposed(outputs, exposure).exp(), validate_args=False).to_event(1)

    def log_prob(
        self,
        outputs: Float[Tensor, "*#S N T"],
        targets: Float[Tensor, "N T"],
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "*#S N"]:
        """``sum_t y f - exp f - log y!`` with ``log(exposure)`` in f."""
        outputs = exposed(outputs, exposure)
        return (targets * outputs - outputs.exp() - torch.lgamma(targets + 1)).sum(-1)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Float[Tensor, "N T"],
        generator: torch.Generator | None = None,
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "*S N"]:
        """In closed form: ``E[exp f] = exp(m + v / 2)``."""
        mean = exposed(outputs.mean, exposure)
        rate = (mean + 0.5 * outputs.variance).exp()
        return (targets * mean - rate - torch.lgamma(targets + 1)).sum(-1)

    def output_curvature(
        self, outputs: Float[Tensor, "*S N T"], exposure: Tensor | None = None, **_: Tensor
    ) -> Float[Tensor, "*S N T"]:
        """``exposure exp f``."""
        return exposed(outputs, exposure).exp()

    def expected_derivatives(
        self,
        draws: Float[Tensor, "S N T"],
        targets: Float[Tensor, "N T"],
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T T"]]:
        """``y - E[exposure exp f]`` and ``diag(E[exposure exp f])``."""
        rate = exposed(draws, exposure).exp().mean(0)
        return targets - rate, torch.diag_embed(rate)
