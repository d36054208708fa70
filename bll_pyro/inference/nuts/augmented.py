"""The horseshoe with its local scales as unknowns: guides work with them integrated out, chains with them sampled.

Integrated over its local scales, the horseshoe's density has a pole at its centre, for which no step size is right.
Given these scales the weights are Normal, and the coordinates of :mod:`bll_pyro.inference.nuts.density` remove the
funnel. The marginal posterior of all other unknowns is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro.inference.nuts.approximation import ChainStart
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.priors import GaussianPrior, Horseshoe
from bll_pyro.priors.base import Shape, centre, expand

MAX_LOG = 5.0  # largest absolute log of an initial local scale: a factor of about 150


@dataclass(frozen=True, eq=False)
class _LocalHorseshoe(GaussianPrior):
    """The regularised horseshoe with a site ``lambda [K, D]`` for its local scales, ``HalfCauchy(1)``."""

    horseshoe: Horseshoe

    def hyper(self, shape: Shape) -> dict[str, dist.Distribution]:
        """``tau``, ``c2``, ``lambda``."""
        local = dist.HalfCauchy(torch.tensor(1.0), validate_args=False).expand(shape).to_event(2)
        return {**self.horseshoe.hyper(shape), "lambda": local}

    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Normal:
        """Normal with variance ``c^2 tau^2 lambda^2 / (c^2 + tau^2 lambda^2)``."""
        tau, c2 = hyper["tau"][..., None, None], hyper["c2"][..., None, None]
        log_precision = torch.logaddexp(-c2.log(), -2 * (tau.log() + hyper["lambda"].log()))
        loc = expand(centre(self.horseshoe.loc, tau), shape)
        return dist.Normal(loc, (-0.5 * log_precision).exp(), validate_args=False)


def augmented(
    layer: LastLayer, start: ChainStart, num_features: int, target_shape: TargetShape
) -> tuple[LastLayer, ChainStart]:
    """The layer that chains sample, and the start extended by initial values of the local scales.

    The initial local scale of a weight gives the prior the variance that it has in the approximation.
    """
    prior = layer.prior
    if not isinstance(prior, Horseshoe):
        return layer, start
    shape = (len(start.loc), num_features)
    values = GlobalSites(layer, shape, target_shape).constrain(start.u)[0]
    precision = start.prior_precision[:, :num_features]
    rest = (precision - values["c2"].reciprocal()).clamp_min(torch.finfo(precision.dtype).tiny)
    log_local = -0.5 * rest.log() - values["tau"].log()
    values["lambda"] = log_local.clamp(-MAX_LOG, MAX_LOG).exp()
    sampled_layer = replace(layer, prior=_LocalHorseshoe(prior))
    u = GlobalSites(sampled_layer, shape, target_shape).unconstrain(values)
    return sampled_layer, replace(start, u=u)
