"""The log prior density of weights and bias as a quadratic, for priors that are Gaussian given their hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.gaussian.precision import precision, quadratic, times
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.layer import LastLayer
from bll_pyro.priors import Posterior


@dataclass(frozen=True, eq=False)
class PriorTerms:
    """``log p(A) = log_peak - (A - loc)' precision (A - loc) / 2``, differentiable in the hyper-parameters.

    Parameters
    ----------
    loc
        Mean, ``[K, P]``.
    precision
        ``[K, P]``, ``[K, P, P]`` or ``[K, P, K, P]``.
    log_peak
        Log density at the mean, nats.
    """

    loc: Tensor
    precision: Tensor
    log_peak: Tensor

    @classmethod
    def of(
        cls, layer: LastLayer, shape: tuple[int, int], hyper: dict[str, Tensor], like: Tensor
    ) -> PriorTerms:
        """Terms of a layer's prior for a weight ``[K, D]`` and a bias, in float64 on the device of ``like``."""
        prior = layer.prior
        if isinstance(prior, Posterior):
            weights = prior.weights
            peak = weights.log_prob(weights.loc[None]).double().squeeze(0)
            return cls(*(value.detach().to(like) for value in (weights.loc, precision(weights), peak)))
        normal = prior.distribution(shape, **hyper)
        loc, scale = (value.to(like).expand(shape) for value in (normal.loc, normal.scale))
        if layer.bias:
            column = layer.bias_center(like.new_zeros(shape[0]))[:, None]
            loc = torch.cat([loc, column], 1)
            scale = torch.cat([scale, torch.full_like(column, layer.bias_scale)], 1)
        return cls(loc, scale.square().reciprocal(), -scale.log().sum() - 0.5 * loc.numel() * LOG_TWO_PI)

    def log_prob(self, weights: Tensor) -> Tensor:
        """Log density of weights ``[K, P]``, nats."""
        return self.log_peak - 0.5 * quadratic(self.precision, weights - self.loc)

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient of the log density ``[K, P]``."""
        return -times(self.precision, weights - self.loc)

    def times(self, vectors: Tensor) -> Tensor:
        """Precision times ``vectors [K, P]``."""
        return times(self.precision, vectors)

    def detach(self) -> PriorTerms:
        """The same terms, detached from the graph."""
        return PriorTerms(self.loc.detach(), self.precision.detach(), self.log_peak.detach())
