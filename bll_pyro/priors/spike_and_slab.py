"""Spike and slab: each weight is either negligible or free, and the choice is summed out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import is_number, positive_or_none
from bll_pyro.priors.base import (
    IS_DEVIATION,
    MixtureOfNormals,
    ScaleMixturePrior,
    Shape,
    centre,
    check_hyper_prior,
    check_loc,
    expand,
)

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class SpikeAndSlab(ScaleMixturePrior):
    """``weight ~ (1 - slab_prob) Normal(loc, spike_scale) + slab_prob Normal(loc, slab_scale)`` (George and McCulloch 1993).

    Parameters
    ----------
    spike_scale
        Standard deviation of negligible weights; None is ``0.1 / sqrt(D)``, so that D of them together move an
        output by a tenth of a standard deviation.
    slab_scale
        Standard deviation of relevant weights: a number above that of the spike, or a Pyro distribution, its prior
        (site ``slab_scale``); None (default) is ``HalfCauchy(1)``.
    slab_prob
        Probability that a weight is relevant: a number, or a Pyro distribution on (0, 1), its prior (site
        ``slab_prob``); None (default) is ``Beta(1, 1)``.
    loc
        Centre ``[K, D]`` of the weights, on the scale of the standardised features; None is 0.
    """

    spike_scale: float | None = None
    slab_scale: float | dist.Distribution | None = None
    slab_prob: float | dist.Distribution | None = None
    loc: Tensor | None = None

    def __post_init__(self) -> None:
        positive_or_none(self.spike_scale, "spike_scale", "SpikeAndSlab", IS_DEVIATION)
        check_loc(self.loc, "SpikeAndSlab")
        check_number_or_prior(self.slab_scale, math.inf, "SpikeAndSlab(slab_scale=...)")
        check_number_or_prior(self.slab_prob, 1.0, "SpikeAndSlab(slab_prob=...)")
        slab, spike = self.slab_scale, self.spike_scale
        if isinstance(slab, (int, float)) and spike is not None and spike >= slab:
            raise ValueError(
                f"SpikeAndSlab: expected spike_scale < slab_scale, got {spike} and {slab}; swap them or widen the slab"
            )

    def spike_scale_of(self, num_features: int) -> float:
        """Standard deviation of the spike for D features."""
        return 0.1 / math.sqrt(num_features) if self.spike_scale is None else float(self.spike_scale)

    def hyper(self, shape: Shape) -> dict[str, dist.Distribution]:
        """``slab_prob`` and ``slab_scale``, where they have priors."""
        one = torch.tensor(1.0)
        given = {"slab_prob": self.slab_prob, "slab_scale": self.slab_scale}
        if self.slab_prob is None:
            given["slab_prob"] = dist.Beta(one, one, validate_args=False)
        if self.slab_scale is None:
            given["slab_scale"] = dist.HalfCauchy(one, validate_args=False)
        return {k: v for k, v in given.items() if isinstance(v, torch.distributions.Distribution)}

    def distribution(self, shape: Shape, **hyper: Tensor) -> MixtureOfNormals:
        """Mixture of two Normals with batch shape ``[..., K, D]``."""
        log_probs, scales = self._components(shape[1], torch.get_default_dtype(), **hyper)
        log_probs, scales = log_probs[..., None, None, :], scales[..., None, None, :]
        scales = scales.expand(torch.broadcast_shapes(scales.shape, log_probs.shape, (*shape, 2)))
        loc = expand(centre(self.loc, scales), shape)[..., None].expand_as(scales)
        chosen = dist.Categorical(logits=log_probs.expand_as(scales), validate_args=False)
        return MixtureOfNormals(chosen, dist.Normal(loc, scales, validate_args=False), validate_args=False)

    def log_prob_of_square(self, square: Float[Tensor, "*S K D"], **hyper: Tensor) -> Float[Tensor, "*S K D"]:
        """Log density at squared distances from the centre."""
        log_probs, scales = self._components(square.shape[-1], square.dtype, **hyper)
        heights, rates = log_probs - scales.log() - 0.5 * LOG_TWO_PI, 0.5 / scales.square()
        spike, slab = (heights[i] - rates[i] * square for i in (0, 1))
        return torch.logaddexp(spike, slab)

    def slab_probability(self, weight: Float[Tensor, "*S K D"], **hyper: Tensor) -> Float[Tensor, "*S K D"]:
        """Probability that weights ``[..., K, D]`` come from the slab, given their values and the hyper-parameters."""
        given = self.distribution((weight.shape[-2], weight.shape[-1]), **hyper)
        logits = given.mixture_distribution.logits + given.component_distribution.log_prob(weight[..., None])
        return torch.softmax(logits, -1)[..., 1]

    def softened(self, shape: Shape, size: float, share: float) -> Self:
        """The same with a wider spike: from the size of a typical weight down to ``spike_scale``.

        A spike much narrower than the posterior of a weight has no gradient at the start, and the fit would stay in the slab.
        """
        spike = self.spike_scale_of(shape[1])
        widest = max(
            spike, min(size, 0.5 * self.slab_scale) if isinstance(self.slab_scale, (int, float)) else size
        )
        return replace(self, spike_scale=spike**share * widest ** (1 - share))

    def _components(
        self,
        num_features: int,
        dtype: torch.dtype,
        slab_prob: Tensor | None = None,
        slab_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities, and the scales, of spike and slab: ``[..., 2]`` each."""
        known = [value for value in (slab_prob, slab_scale) if value is not None]
        like = known[0] if known else torch.empty((), dtype=dtype)
        prob = torch.as_tensor(self.slab_prob).to(like) if slab_prob is None else slab_prob
        slab = torch.as_tensor(self.slab_scale).to(like) if slab_scale is None else slab_scale
        spike = torch.full_like(slab, self.spike_scale_of(num_features))
        return torch.stack([torch.log1p(-prob), prob.log()], -1), torch.stack([spike, slab], -1)


def check_number_or_prior(value: object, upper: float, owner: str) -> None:
    """Raise if this is neither None, nor a number between 0 and ``upper``, nor the distribution of one."""
    if value is None:
        return
    if isinstance(value, torch.distributions.Distribution):
        check_hyper_prior(value, owner, upper)
    elif isinstance(value, bool) or not is_number(value, 0.0, upper):
        expected = "a positive number" if upper == math.inf else f"a number between 0 and {upper:g}"
        raise ValueError(f"{owner}: expected {expected} or a Pyro distribution of one, got {value!r}")
