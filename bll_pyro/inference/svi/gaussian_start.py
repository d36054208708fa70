"""Where a guide with one covariance over all weights starts: near the best Gaussian, found without draws of gradients.

At the highest ELBO over Gaussians ``N(m, P^-1)`` (Opper and Archambeau 2009), with ``q(f_n)`` the outputs of row n,

``P = prior precision + sum_n E_q[L_n] (x) h_n h_n'``  and  ``sum_n E_q[g_n] h_n' + E_q[slope of log prior] = 0``

where ``g_n`` and ``-L_n`` are slope and Hessian of ``log p(y_n | f_n)``. Both are solved for in turns, by steps along the
natural gradient (Khan and Lin 2017); expectations are over a fixed set of quasi-random points. Stochastic steps then
have only to refine it: (K P)^2 / 2 numbers, each with noise of its own, take far more of them than all others together.

Scales of the prior that are learned settle along the way: see :func:`followed` and :func:`ahead`. What is left to the
stochastic steps creeps, since the weights follow their scale and the scale the weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.curvatures import Full
from bll_pyro.gaussian import Dense, Diagonal, OutputGaussian, flatten
from bll_pyro.gaussian.information import DenseInformation
from bll_pyro.global_sites import GlobalSites
from bll_pyro.guides import Start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import NUM_START_ROWS
from bll_pyro.inference.targets import Targets, row_data, values_of, weight_of
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.scope import generator

MAX_WEIGHTS = 4096  # beyond, factoring the precision a few times costs as much as training
MAX_ROUNDS = 40
CYCLE = 8  # rounds
FOLLOWED = 4  # of them in which learned scales are set anew; then they look ahead, and stay until the weights have come after
NUM_FOLLOWED = 10  # turns of scales and spreads in such a round
MAX_RATE = 0.95  # how far ahead at most: 20 steps at once
NUM_POINTS = 32
BLOCK_NUMBERS = 2**22
SHARE = 0.5  # of each step
CLOSE = 0.01  # root mean square step of a mean, in posterior standard deviations, that ends it
SETTLED = 0.002  # and so does, at once, this relative change of the learned scales in a round
NEAR = 0.1  # the same, beyond which the result is no better start than the mode


@torch.no_grad()
def dense_start(
    layer: LastLayer, sites: GlobalSites, rows: DesignRows, start: Start, learned: dict[str, Tensor]
) -> Start:
    """Give ``start`` means and the Cholesky factor of a covariance, from up to 4,096 rows (scaled to all).

    The global unknowns stay where they are; learned scales are found along the way. What cannot be improved this way (too many
    weights, a prior without a density, a precision that is not positive, means that do not settle) comes back as it was.
    """
    if start.loc.numel() > MAX_WEIGHTS or not layer.prior.has_density or layer.prior.covers_bias:
        return start
    part = rows.subset(NUM_START_ROWS)
    values = sites.constrain(start.globals_loc)[0]
    noise, hyper = sites.noise(values), {**learned, **sites.hyper(values)}
    loc = start.loc.double()
    posterior: Diagonal | Dense = Diagonal(start.loc, start.scale)
    path: list[dict[str, Tensor]] = []
    settled = not learned
    data = torch.zeros((), dtype=loc.dtype, device=loc.device)
    for index in range(MAX_ROUNDS):
        slope, curvature = rows_at(layer.likelihood, part, posterior, noise)
        scale = posterior.marginal_scale().detach()
        if learned:
            turn = index % CYCLE
            if turn < FOLLOWED:
                path.append(followed(layer, posterior.loc, scale, hyper, rows.frame.num_features))
                hyper |= path[-1]
            if turn == FOLLOWED - 1:
                settled = all(
                    bool((now - path[-2][name]).abs().max() < SETTLED * now.abs().max())
                    for name, now in path[-1].items()
                )
                hyper |= ahead(*path[-3:])
        prior_slope, prior_precision = prior_at(layer, posterior.loc, scale, hyper)
        ratio = rows.num_rows / part.num_rows
        found = (ratio * curvature).flatten(2).flatten(0, 1)
        data = torch.lerp(data, found, SHARE) if index else found
        precision = data + torch.diag(prior_precision.double().flatten())
        tril, failed = torch.linalg.cholesky_ex(precision)
        step = torch.cholesky_solve((ratio * slope + prior_slope).reshape(-1, 1), tril).view_as(loc)
        if failed or not bool(torch.isfinite(step).all()):
            return start
        loc = loc + SHARE * step
        posterior = dense(loc, tril, start.loc)
        distance = torch.sqrt((precision @ step.flatten() @ step.flatten()) / step.numel())
        if settled and float(distance) < CLOSE:
            break
    if not float(distance) < NEAR:
        return start
    order = flatten(loc.new_zeros(0), torch.arange(loc.numel()).view(loc.shape), start.num_features).long()
    covariance = torch.cholesky_inverse(tril)[order][:, order]
    return replace(
        start,
        loc=loc.to(start.loc),
        scale=precision.diagonal().rsqrt().view_as(loc).to(start.scale),
        tril=torch.linalg.cholesky(covariance).to(start.loc),
    )


@torch.no_grad()
def rows_at(
    likelihood: Likelihood, rows: DesignRows, posterior: Diagonal | Dense, noise: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``sum_n E_q[g_n] h_n' [K, P]`` and ``sum_n E_q[L_n] (x) h_n h_n' [K, P, K, P]``, float64."""
    num_outputs, num_columns = posterior.loc.shape
    slope = posterior.loc.new_zeros(num_outputs, num_columns, dtype=torch.float64)
    sums = Full().zeros(num_outputs, num_columns, False, slope)
    size = max(1, BLOCK_NUMBERS // (num_outputs * num_outputs * num_columns))
    for design, targets in rows.blocks(size):
        gradient, curvature = derivatives(likelihood, posterior.outputs(design), targets, noise)
        slope += gradient.mT @ design
        Full().add(sums, design, DenseInformation(curvature))
    return slope, sums[0]


def derivatives(
    likelihood: Likelihood, outputs: OutputGaussian, targets: Targets, noise: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weighted ``E_q[g_n] [N, K]`` and ``E_q[L_n] [N, K, K]``."""
    told = {**{name: value[None, None] for name, value in noise.items()}, **row_data(targets)}
    draws = outputs.draws(NUM_POINTS)
    draws = draws + (outputs.mean - draws.mean(0))  # so that what is linear in the outputs is exact
    gradient, curvature = likelihood.expected_derivatives(draws, values_of(targets), **told)
    weight = weight_of(targets)
    if weight is None:
        return gradient, curvature
    return weight[:, None] * gradient, weight[:, None, None] * curvature


def prior_at(layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Expected slope and precision of the log prior; the second as ``-(d/ds E_q[log p]) / s`` (Price's theorem)."""
    point, spread = loc.detach().requires_grad_(), scale.detach().requires_grad_()
    with torch.enable_grad():
        value = layer.expected_log_prior(Diagonal(point, spread), hyper, generator(0, loc.device))
        slope, pull = torch.autograd.grad(value, (point, spread))
    # heavy tails curve upwards: a little of the posterior's own precision is then the least
    return slope, (-pull / scale).maximum(1e-4 * scale.square().reciprocal())


def followed(
    layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor], num_features: int
) -> dict[str, Tensor]:
    """Learned scales of the prior, where the posterior's scales are taken to follow them.

    To set each to its best for scales that stay has the same end (``tau^2 = mean(m^2 + s^2)`` for a Normal prior), but where the
    prior holds most of the weights it moves by a small share of the way each time. So ``s^-2`` is the data's part, which stays,
    and the prior's, at the scale that is sought (cf. MacKay 1992).
    """
    data = (scale.square().reciprocal() - prior_at(layer, loc, scale, hyper)[1]).clamp_min(0.0)
    found: dict[str, Tensor] = {}
    for _ in range(NUM_FOLLOWED):
        found = layer.prior.learned_update(loc[:, :num_features], scale[:, :num_features])
        scale = (data + prior_at(layer, loc, scale, {**hyper, **found})[1]).rsqrt()
    return found


def ahead(first: dict[str, Tensor], second: dict[str, Tensor], third: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where three positive numbers in a row are bound for, if their logarithms move geometrically (Aitken 1926)."""
    found = {}
    for name, value in third.items():
        before, now = (second[name] / first[name]).log(), (value / second[name]).log()
        rate = torch.where(before == 0, 0.0, now / before).clamp(0.0, MAX_RATE)
        found[name] = value * (now * rate / (1 - rate)).exp()
    return found


def dense(loc: Tensor, tril: Tensor, like: Tensor) -> Dense:
    """The Gaussian with the Cholesky factor ``tril`` of its precision, in the precision of the rows."""
    eye = torch.eye(len(tril), dtype=tril.dtype, device=tril.device)
    root = torch.linalg.solve_triangular(tril, eye, upper=False).mT
    return Dense(loc.to(like), root.reshape(*loc.shape, -1).to(like), -tril.diagonal().log().sum().to(like))
