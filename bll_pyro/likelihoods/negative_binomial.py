"""Counts whose variance is larger than their mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import is_number
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.likelihoods.counts import Counts, exposed
from bll_pyro.likelihoods.special import negative_binomial_cdf


class NegativeBinomialCounts(dist.NegativeBinomial):
    """Pyro's negative binomial, with its distribution function."""

    def cdf(self, value: Float[Tensor, " *#S"]) -> Float[Tensor, " *#S"]:
        """``P(Y <= value) = I_(1-p)(concentration, floor(value) + 1)``, by SciPy: torch has no incomplete beta."""
        if torch.compiler.is_compiling():  # a graph has torch's arithmetic only
            return negative_binomial_cdf(value, self.total_count, self.logits)
        from scipy.special import betainc

        count = value.floor()
        shape = torch.broadcast_shapes(count.shape, self.batch_shape)
        total, stay = self.total_count.expand(shape), torch.sigmoid(-self.logits).expand(shape)
        tail = betainc(
            total.cpu().numpy(), (count.clamp_min(0).expand(shape) + 1).cpu().numpy(), stay.cpu().numpy()
        )
        tail = torch.as_tensor(tail, dtype=total.dtype, device=total.device)
        return torch.where(count < 0, torch.zeros_like(tail), tail)


@dataclass(frozen=True, eq=False)
class NegativeBinomial(Counts):
    """Counts with mean ``mu = exposure exp(f[t])`` and variance ``mu + mu^2 / concentration``.

    Parameters
    ----------
    concentration
        A positive number: known. A Pyro distribution: its prior. None (default): the weak prior ``LogNormal(1, 1.5)``.
        Large values approach the Poisson.
    """

    concentration: float | dist.Distribution | None = None

    def __post_init__(self) -> None:
        value = self.concentration
        known = is_number(value)
        if not (known or value is None or isinstance(value, torch.distributions.Distribution)):
            raise ValueError(
                "NegativeBinomial(concentration=...): expected a positive number, a Pyro distribution or None, "
                f"got {value!r}"
            )

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``concentration [T]``, one for each count, unless it is known."""
        if isinstance(self.concentration, (int, float)):
            return {}
        prior = self.concentration
        if prior is None:
            prior = dist.LogNormal(torch.tensor(1.0), torch.tensor(1.5))
        if not prior.event_shape:
            prior = prior.expand((math.prod(target_shape),)).to_event(1)
        return {"concentration": prior}

    def distribution(
        self,
        outputs: Float[Tensor, "*#S N T"],
        concentration: Tensor | None = None,
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> dist.Distribution:
        """Independent negative binomials over the T counts of a row."""
        outputs = exposed(outputs, exposure)
        total = self._concentration(outputs, concentration)
        return NegativeBinomialCounts(total, logits=outputs - total.log(), validate_args=False).to_event(1)

    def output_curvature(
        self,
        outputs: Float[Tensor, "*S N T"],
        concentration: Tensor | None = None,
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "*S N T"]:
        """``mu c / (mu + c)``, the expected negative Hessian."""
        mean, total = exposed(outputs, exposure).exp(), self._concentration(outputs, concentration)
        return mean * total / (mean + total)

    def _concentration(
        self, outputs: Float[Tensor, "*#S N T"], concentration: Tensor | None
    ) -> Float[Tensor, "*#S N T"]:
        if concentration is not None:
            return concentration.expand(torch.broadcast_shapes(concentration.shape, outputs.shape))
        return torch.full_like(outputs, float(self.concentration))  # type: ignore[arg-type]
