"""The initial Gaussian of a guide with one covariance over all weights: near the optimum, without stochastic gradients.

At the maximum of the ELBO over Gaussians ``N(m, P^-1)`` (Opper and Archambeau 2009), with ``q(f_n)`` the outputs of row n,

``P = prior precision + sum_n E_q[L_n] (x) h_n h_n'``  and  ``sum_n E_q[g_n] h_n' + E_q[gradient of log prior] = 0``

where ``g_n`` and ``-L_n`` are gradient and Hessian of ``log p(y_n | f_n)``. Both equations are solved alternately, by
natural gradient steps (Khan and Lin 2017); expectations are over a fixed set of quasi-random points. Training then only
refines this Gaussian: from noisy gradients alone, the (K P)^2 / 2 numbers of the covariance would take far more steps
than all other parameters.

Learned prior scales converge in these rounds, see :func:`followed` and :func:`ahead`. In training they converge slowly,
because scale and weights depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.curvatures import Full
from bll_pyro.gaussian import Dense, Diagonal, OutputGaussian, flatten
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.information import DenseInformation
from bll_pyro.guides import Start
from bll_pyro.inference.row_targets import row_data, values_of, weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import NUM_START_ROWS
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.model import GlobalSites
from bll_pyro.scope import generator

MAX_WEIGHTS = 4096  # most weights; with more, the factorizations of the precision cost as much as training
MAX_ROUNDS = 40  # most natural gradient steps
CYCLE = 8  # rounds in a cycle of the learned prior scales
FOLLOWED = 4  # first rounds of a cycle, which update the scales; then they are extrapolated once and kept
NUM_FOLLOWED = 10  # alternating updates of prior scales and posterior scales in one of these rounds
MAX_RATE = 0.95  # largest rate of convergence in an extrapolation, which goes 20 steps ahead
NUM_POINTS = 32  # quasi-random points of the expectations
BLOCK_NUMBERS = 2**22  # numbers in one block of rows
SHARE = 0.5  # damping factor of each step
CLOSE = 0.01  # root mean square step of the means, in posterior standard deviations, at convergence
SETTLED = 0.002  # relative change of the learned scales in a round, at convergence
NEAR = 0.1  # root mean square step above which the result is discarded
LEAST_SHARE = 1e-4  # smallest prior precision of a weight, as a share of its posterior precision


@torch.no_grad()
def dense_start(
    layer: LastLayer, sites: GlobalSites, rows: DesignRows, start: Start, learned: dict[str, Tensor]
) -> Start:
    """``start`` with means and the Cholesky factor of a covariance, from up to 4,096 rows (scaled to all).

    The global unknowns are not changed. ``start`` is returned as it is if there are too many weights, the prior has no
    density, the precision is not positive definite, or the means do not converge.
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
        gradient, curvature = rows_at(layer.likelihood, part, posterior, noise)
        scale = posterior.marginal_scale().detach()
        if learned:
            phase = index % CYCLE
            if phase < FOLLOWED:
                path.append(followed(layer, posterior.loc, scale, hyper, rows.frame.num_features))
                hyper |= path[-1]
            if phase == FOLLOWED - 1:
                settled = all(
                    bool((now - path[-2][name]).abs().max() < SETTLED * now.abs().max())
                    for name, now in path[-1].items()
                )
                hyper |= ahead(*path[-3:])
        prior_gradient, prior_precision = prior_at(layer, posterior.loc, scale, hyper)
        ratio = rows.num_rows / part.num_rows
        new_data = (ratio * curvature).flatten(2).flatten(0, 1)
        data = torch.lerp(data, new_data, SHARE) if index else new_data
        precision = data + torch.diag(prior_precision.double().flatten())
        tril, failed = torch.linalg.cholesky_ex(precision)
        step = torch.cholesky_solve((ratio * gradient + prior_gradient).reshape(-1, 1), tril).view_as(loc)
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
        tril=cholesky(covariance, "covariance of the weights").to(start.loc),
    )


def rows_at(
    likelihood: Likelihood, rows: DesignRows, posterior: Diagonal | Dense, noise: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``sum_n E_q[g_n] h_n' [K, P]`` and ``sum_n E_q[L_n] (x) h_n h_n' [K, P, K, P]``, float64, at one value of the noise."""

    def draws(design: Tensor) -> Tensor:
        return centred_draws(posterior.outputs(design), NUM_POINTS)

    return sums_at(likelihood, rows, draws, {k: v[None, None] for k, v in noise.items()}, posterior.loc)


@torch.no_grad()
def sums_at(
    likelihood: Likelihood,
    rows: DesignRows,
    draws: Callable[[Tensor], Tensor],
    noise: dict[str, Tensor],
    loc: Tensor,
) -> tuple[Tensor, Tensor]:
    """The sums of :func:`rows_at` for ``draws`` of the outputs ``[S, B, K]`` of rows, and noise ``[S or 1, 1, ...]``."""
    num_outputs, num_columns = loc.shape
    total = loc.new_zeros(num_outputs, num_columns, dtype=torch.float64)
    sums = Full().zeros(num_outputs, num_columns, False, total)
    for design, targets in rows.blocks(max(1, BLOCK_NUMBERS // (num_outputs * num_outputs * num_columns))):
        arguments = {**noise, **row_data(targets)}
        gradient, curvature = likelihood.expected_derivatives(draws(design), values_of(targets), **arguments)
        weight = weight_of(targets)
        if weight is not None:
            gradient, curvature = weight[:, None] * gradient, weight[:, None, None] * curvature
        total += gradient.mT @ design
        Full().add(sums, design, DenseInformation(curvature))
    return total, sums[0]


def centred_draws(outputs: OutputGaussian, num_points: int) -> Tensor:
    """Quasi-random draws ``[S, N, K]`` with the mean and the variance of the outputs.

    Expectations of linear functions are exact then, and that of an exponential nearly so: few points have too little variance,
    and ``E[exp f]`` would be too small by half of what is missing.
    """
    draws = outputs.draws(num_points)
    if len(draws) == 1:
        return draws
    deviation = draws - draws.mean(0)
    found = deviation.square().mean(0).clamp_min(torch.finfo(draws.dtype).tiny)
    return outputs.mean + deviation * (outputs.variance / found).sqrt()


def prior_at(layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Expected gradient and precision of the log prior, ``[K, P]`` each; precision ``-(d/ds E_q[log p]) / s`` (Price)."""
    point, spread = loc.detach().requires_grad_(), scale.detach().requires_grad_()
    with torch.enable_grad():
        value = layer.expected_log_prior(Diagonal(point, spread), hyper, generator(0, loc.device))
        of_loc, of_scale = torch.autograd.grad(value, (point, spread))
    # the precision is negative in heavy tails: bound it by a small share of the posterior's
    return of_loc, (-of_scale / scale).maximum(LEAST_SHARE * scale.square().reciprocal())


def followed(
    layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor], num_features: int
) -> dict[str, Tensor]:
    """Learned prior scales, updated together with the posterior scales that depend on them.

    Updates with fixed posterior scales (``tau^2 = mean(m^2 + s^2)`` for a Normal prior) have the same fixed point, but
    converge slowly where the prior determines most weights. So ``s^-2`` is split into the data's precision, which is
    fixed, and the prior's, which is evaluated at each new prior scale (cf. MacKay 1992).
    """
    data = (scale.square().reciprocal() - prior_at(layer, loc, scale, hyper)[1]).clamp_min(0.0)
    found: dict[str, Tensor] = {}
    for _ in range(NUM_FOLLOWED):
        found = layer.prior.learned_update(loc[:, :num_features], scale[:, :num_features])
        scale = (data + prior_at(layer, loc, scale, {**hyper, **found})[1]).rsqrt()
    return found


def ahead(first: dict[str, Tensor], second: dict[str, Tensor], third: dict[str, Tensor]) -> dict[str, Tensor]:
    """Limit of three successive iterates, if the changes of their logarithms are geometric (Aitken 1926)."""
    limits = {}
    for name, value in third.items():
        before, now = (second[name] / first[name]).log(), (value / second[name]).log()
        rate = torch.where(before == 0, 0.0, now / before).clamp(0.0, MAX_RATE)
        limits[name] = value * (now * rate / (1 - rate)).exp()
    return limits


def dense(loc: Tensor, tril: Tensor, like: Tensor) -> Dense:
    """The Gaussian with the Cholesky factor ``tril`` of its precision, in the dtype of ``like``."""
    eye = torch.eye(len(tril), dtype=tril.dtype, device=tril.device)
    root = torch.linalg.solve_triangular(tril, eye, upper=False).mT
    return Dense(loc.to(like), root.reshape(*loc.shape, -1).to(like), -tril.diagonal().log().sum().to(like))
