"""The coordinates of a chain, from a Gaussian approximation: scales of the global unknowns, stretch of the weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.global_sites import GlobalSites
from bll_pyro.inference.nuts.approximation import ChainStart
from bll_pyro.inference.nuts.density import Coordinates, LogDensity, LogPrior
from bll_pyro.inference.nuts.row_terms import RowTerms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.priors import GaussianPrior

DIFFERENCE = 0.01  # of an unconstrained number
MIN_PRECISION = 0.1  # logs of scales are rarely less certain a priori than a factor of 20


def coordinates(
    layer: LastLayer, origin: ChainStart, rows: DesignRows, target_shape: TargetShape, terms: RowTerms
) -> Coordinates:
    """Coordinates around an origin; the mass matrix that a chain adapts does the rest."""
    dtype, num_features = rows.frame.center.dtype, rows.frame.num_features
    whitening = origin.whitening.to(torch.empty(0, dtype=dtype, device=rows.device))
    made = Coordinates(origin.u, torch.ones_like(origin.u), origin.loc, whitening)
    if not len(origin.u):
        return made
    sites = GlobalSites(layer, (len(origin.loc), num_features), target_shape)
    if isinstance(layer.prior, GaussianPrior) and sites.hyper_names:
        prior = LogPrior(layer, num_features, origin.learned, torch.zeros_like(origin.loc))
        there = prior.terms(sites.hyper(sites.constrain(origin.u)[0])).precision
        # the posterior's precision of a weight by itself, less the prior's share
        known = (origin.whitening.variance().reciprocal() - there).clamp_min(0)
        made = replace(made, known=known.detach())
    density = LogDensity(layer, num_features, target_shape, terms, origin.learned, made, dtype)
    return replace(made, u_scale=globals_scale(density, origin.u))


def globals_scale(density: LogDensity, u: Tensor) -> Tensor:
    """Standard deviation of each global unknown with all else held fixed, ``[U]``, by differences of the slope.

    With the weights known it is smaller than the posterior's, which is the safe side for the first steps.
    """

    def slope(v: Tensor) -> Tensor:
        state = {"globals": v.requires_grad_(), "weights": v.new_zeros(density.shape["weights"])}
        return torch.autograd.grad(density(state), state["globals"])[0]

    precision = torch.empty_like(u)
    for index in range(len(u)):
        step = torch.zeros_like(u)
        step[index] = DIFFERENCE
        precision[index] = (slope(step) - slope(-step))[index] / (2 * DIFFERENCE)
    return precision.nan_to_num(nan=1.0).clamp_min(MIN_PRECISION).rsqrt()
