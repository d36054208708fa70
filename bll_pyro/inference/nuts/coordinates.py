"""The coordinates of a chain from a Gaussian approximation: scales of the global unknowns, precisions of the weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.inference.nuts.approximation import ChainStart
from bll_pyro.inference.nuts.density import Coordinates, LogDensity, LogPrior
from bll_pyro.inference.nuts.row_terms import RowTerms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.priors import GaussianPrior

DIFFERENCE = 0.01  # step of the central difference, in unconstrained units
MIN_PRECISION = 0.1  # smallest precision of a global unknown: a standard deviation of the log of about 3


def coordinates(
    layer: LastLayer, start: ChainStart, rows: DesignRows, target_shape: TargetShape, terms: RowTerms
) -> Coordinates:
    """Coordinates centred at ``start``; the chain's adapted mass matrix corrects their remaining errors of scale."""
    dtype, num_features = rows.frame.center.dtype, rows.frame.num_features
    whitening = start.whitening.to(torch.empty(0, dtype=dtype, device=rows.device))
    unscaled = Coordinates(start.u, torch.ones_like(start.u), start.loc, whitening)
    if not len(start.u):
        return unscaled
    sites = GlobalSites(layer, (len(start.loc), num_features), target_shape)
    if isinstance(layer.prior, GaussianPrior) and sites.hyper_names:
        prior = LogPrior(layer, num_features, start.learned, torch.zeros_like(start.loc))
        prior_precision = prior.terms(sites.hyper(sites.constrain(start.u)[0])).precision
        # each weight's marginal posterior precision minus the prior's
        known = (start.whitening.variance().reciprocal() - prior_precision).clamp_min(0)
        unscaled = replace(unscaled, known=known.detach())
    density = LogDensity(layer, num_features, target_shape, terms, start.learned, unscaled, dtype)
    return replace(unscaled, u_scale=globals_scale(density, start.u))


def globals_scale(density: LogDensity, u: Tensor) -> Tensor:
    """Conditional standard deviation of each global unknown ``[U]``, all others fixed, by differences of the gradient.

    It is at most the marginal one, so the first steps of a chain are too small rather than too large.
    """

    def gradient(v: Tensor) -> Tensor:
        state = {"globals": v.requires_grad_(), "weights": v.new_zeros(density.shape["weights"])}
        return torch.autograd.grad(density(state), state["globals"])[0]

    precision = torch.empty_like(u)
    for index in range(len(u)):
        step = torch.zeros_like(u)
        step[index] = DIFFERENCE
        precision[index] = (gradient(step) - gradient(-step))[index] / (2 * DIFFERENCE)
    return precision.nan_to_num(nan=1.0).clamp_min(MIN_PRECISION).rsqrt()
