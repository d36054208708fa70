"""The last rounds of a fit, on all rows and without random draws: to the optimum of the ELBO, and a test of whether it is there.

Steps on batches end where their noise leaves them. That is near the optimum, but not always near enough: a class of two rows
is in one batch and not in the next, columns that are nearly the same move the means along a narrow valley, and noise that
begins far from its value is moved by a share of it in each step. With z = (u, A) all unknowns, ``q(z) = N(m, S)``, and

``g = E_q[d log p(y, z) / dz]``  and  ``P = -E_q[d2 log p(y, z) / dz dz']``,

the ELBO has its maximum where ``g = 0``, and where S is the member of the guide's family that maximises
``H[q] - tr(P S) / 2`` (Opper and Archambeau 2009). Each round is one natural gradient step to both (Khan and Lin 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bll_pyro.gaussian import LatentGaussian, flatten, normal_points
from bll_pyro.guides.base import LatentGaussianGuide
from bll_pyro.inference.row_targets import log_prob
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.gaussian_start import BLOCK_NUMBERS, centred_draws, followed, prior_at, sums_at
from bll_pyro.inference.svi.objective import Objective, all_finite, restore, snapshot
from bll_pyro.observation import StopTraining, stage

MAX_UNKNOWNS = 1024  # most unknowns: P is factored in each round
MAX_WORK = (
    2**29
)  # largest N (K P)^2 and largest S N K^2: with more, a round costs as much as an epoch of the training
FEWEST_POINTS, MOST_POINTS = 64, 128  # S: quasi-random points of the expectations,
ALL_POINTS = (
    2**20
)  # or so many that S N K^2 is below this number: the fewer rows, the more an error of the points matters
MAX_ROUNDS = 50
LEAST_SHARE = 1 / 8  # smallest damping factor of a step
CLOSE = 0.01  # largest step of a mean, in posterior standard deviations, at which the rounds end
SAME = 0.01  # largest relative change of a standard deviation in a round there
SETTLED = 0.001  # largest relative change of a learned scale in a round there
NEAR = 0.1  # both, above which the fit is not called converged, and what a standard deviation may lack
GROWTH = 1.2  # of the distance, above which a step was too long
MAX_MOVE = 1.0  # how far a global unknown may move in a round
LEAST_CURVATURE = 0.1  # of the ELBO in a global unknown, which has a prior of its own


@dataclass
class Settled:
    """How the rounds ended.

    Parameters
    ----------
    distance
        Largest distance of a mean from the optimum, in posterior standard deviations.
    change
        Largest relative change of a standard deviation in the last round.
    num_rounds
        Number of rounds.
    width
        Smallest ratio of a standard deviation of the guide to that of the best Gaussian of all: below 1 where its family
        cannot hold the correlations. 1 for guides that promise none.
    """

    distance: float = math.inf
    change: float = math.inf
    num_rounds: int = 0
    width: float = 1.0

    def messages(self) -> list[str]:
        """What to tell the user where the result is not good enough for every use."""
        said = []
        if self.distance > NEAR or self.change > NEAR:
            said.append(
                f"the optimum was not reached: after {self.num_rounds} rounds on all rows a mean is still {self.distance:.2g} "
                f"posterior standard deviations from it, and standard deviations change by {self.change:.0%} a round; use "
                "bll.Laplace() or bll.NUTS(), standardize=True, or a tighter prior"
            )
        if self.width < 1 - NEAR:
            said.append(
                "the guide cannot hold the correlations of the posterior: a standard deviation is "
                f"{self.width:.0%} of that of the best Gaussian; use guides.FullRank(), principal_axes=True with a prior that "
                "allows it, or a higher rank"
            )
        return said


def can_settle(objective: Objective, rows: DesignRows) -> bool:
    """Whether P exists and is small enough."""
    layer, sites = objective.layer, objective.model.global_sites
    size = objective.model.num_outputs * rows.num_columns
    return (
        objective.closed
        and not objective.is_point
        and not layer.prior.covers_bias
        and not sites.hyper_names
        and sites.num + size <= MAX_UNKNOWNS
        and rows.num_rows * max(size**2, FEWEST_POINTS * objective.model.num_outputs**2) <= MAX_WORK
    )


@torch.no_grad()
def settle(objective: Objective, rows: DesignRows) -> Settled | None:
    """Move the guide of an objective to the optimum; None, and nothing is moved, where P is not positive definite."""
    guide, layer, num_features = objective.guide, objective.layer, objective.model.num_features
    before, share, smooth = snapshot(objective.parameters), 1.0, None
    learned, elbo = dict(objective.learned), objective.evaluate(rows, 0)
    hyper, state, first = dict(objective.learned), Settled(), Settled()
    with stage("rounds on all rows", MAX_ROUNDS) as rounds:
        for index in range(MAX_ROUNDS):
            latents = guide.latents().detach()
            gradient, data = expansion(objective, rows, latents)
            smooth = data if smooth is None else torch.lerp(smooth, data, share)
            of_prior, prior_precision = prior_at(layer, latents.weights.loc, latents.marginal_scale(), hyper)
            gradient[latents.num_globals :] += of_prior.flatten()
            precision = smooth.clone()
            precision.diagonal()[latents.num_globals :] += prior_precision.flatten()
            tril, failed = torch.linalg.cholesky_ex(precision)
            if bool(failed) or not all_finite([gradient, tril]):
                restore(objective.parameters, before)
                return None
            covariance = torch.cholesky_inverse(tril)
            step = covariance @ gradient
            distance = float((step / covariance.diagonal().sqrt()).abs().max())
            share = (
                max(share / 2, LEAST_SHARE) if distance > GROWTH * state.distance else min(1.0, 1.5 * share)
            )
            step[: latents.num_globals].clamp_(-MAX_MOVE, MAX_MOVE)
            order = latent_order(latents, num_features)
            guide.move((share * step)[order])
            guide.fit_covariance(precision[order][:, order])
            moved = guide.latents()
            scale = moved.marginal_scale()
            state = Settled(distance, change_of_scale(latents, moved), index + 1)
            first = first if index else state
            settled = True
            if objective.learns and hyper:
                found = followed(layer, moved.weights.loc, scale, hyper, num_features)
                settled = all(bool(((found[k] / v).log().abs() < SETTLED).all()) for k, v in hyper.items())
                hyper = found
            try:
                rounds.advance(distance=distance)
            except StopTraining:
                break
            if distance < CLOSE and state.change < SAME and settled:
                break
    if state.distance > max(NEAR, first.distance):  # the rounds lead away: what the training found is better
        restore(objective.parameters, before)
        return first
    if objective.learns:
        objective.learned = hyper
    if objective.evaluate(rows, 0) < elbo:  # the points were too few for these rows
        restore(objective.parameters, before)
        if objective.learns:
            objective.learned = learned
        return None
    if isinstance(guide, LatentGaussianGuide) and layer.likelihood.independent_outputs:
        best = covariance.diagonal()[latents.num_globals :].view(scale.shape).sqrt()
        state = replace(state, width=float((scale / best).min()))
    return state


def change_of_scale(before: LatentGaussian, after: LatentGaussian) -> float:
    """Largest relative change of a standard deviation."""
    change = (after.marginal_scale() / before.marginal_scale()).log().abs().max()
    if before.num_globals:
        change = change.maximum((after.globals_scale() / before.globals_scale()).log().abs().max())
    return float(change)


def latent_order(latents: LatentGaussian, num_features: int) -> Tensor:
    """Places of Pyro's latent vector (u, weight, bias) in (u, rows of A)."""
    num, loc = latents.num_globals, latents.weights.loc
    places = torch.arange(num + loc.numel(), device=loc.device)
    return flatten(places[:num], places[num:].view(loc.shape), num_features)


def expansion(objective: Objective, rows: DesignRows, latents: LatentGaussian) -> tuple[Tensor, Tensor]:
    """``g [L]`` and ``P [L, L]`` in the order (u, rows of A) without the terms of the weights' prior, float64."""
    layer, sites, weights = objective.layer, objective.model.global_sites, latents.weights
    num, (num_outputs, num_columns) = latents.num_globals, weights.loc.shape
    affordable = ALL_POINTS // (rows.num_rows * num_outputs**2)
    num_points = 2 ** int(math.log2(min(max(affordable, FEWEST_POINTS), MOST_POINTS)))
    skip = weights.outputs(rows[:1][0]).compact().noise_dim
    points = normal_points(num_points, num, skip=skip).to(weights.loc)
    points = (points - points.mean(0)) / points.square().mean(0).sqrt()
    factor = latents.globals_factor
    u = latents.globals_loc + (points * factor if factor.dim() == 1 else points @ factor.mT)

    def draws(design: Tensor) -> Tensor:
        made = centred_draws(weights.outputs(design), num_points)
        if latents.coupling is None:
            return made
        return made + torch.einsum("np,kpu,su->snk", design, latents.coupling, points)

    noise = {name: value[:, None] for name, value in sites.noise(sites.constrain(u)[0]).items()}
    of_weights, curvature = sums_at(layer.likelihood, rows, draws, noise, weights.loc)
    size = num_outputs * num_columns
    precision = curvature.new_zeros(num + size, num + size)
    precision[num:, num:] = curvature.reshape(size, size)
    of_globals, within, cross = globals_at(objective, rows, draws, u)
    precision[:num, :num], precision[:num, num:], precision[num:, :num] = within, cross, cross.mT
    return torch.cat([of_globals, of_weights.flatten()]), precision


def globals_at(
    objective: Objective, rows: DesignRows, draws: Callable[[Tensor], Tensor], u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of g ``[U]`` and of P, ``[U, U]`` and ``[U, K P]``, that belong to ``u [S, U]``, by automatic differentiation.

    ``draws`` gives outputs ``[S, B, K]`` of rows, which belong to the same points.
    """
    sites, likelihood = objective.model.global_sites, objective.layer.likelihood
    num_points, num = u.shape
    size = objective.model.num_outputs * rows.num_columns
    slope, within = u.new_zeros(num, dtype=torch.float64), u.new_zeros(num, num, dtype=torch.float64)
    cross = u.new_zeros(num, size, dtype=torch.float64)
    if not num:
        return slope, within, cross

    def add(
        value: Tensor, point: Tensor, outputs: Tensor | None = None, design: Tensor | None = None
    ) -> None:
        (first,) = torch.autograd.grad(value, point, create_graph=True)
        slope.add_(first.detach().sum(0) / num_points)
        leaves = (point,) if outputs is None else (point, outputs)
        for index in range(num):
            second = torch.autograd.grad(
                first[:, index].sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            within[index] -= second[0].sum(0) / num_points
            if design is not None:
                cross[index] -= (second[1].mean(0).mT @ design).flatten()

    with torch.enable_grad():
        point = u.detach().requires_grad_()
        values, log_prior, log_jacobian = sites.constrain(point)
        noise = {name: value[:, None] for name, value in sites.noise(values).items()}
        for design, targets in rows.blocks(
            max(1, BLOCK_NUMBERS // (num_points * objective.model.num_outputs))
        ):
            outputs = draws(design).detach().requires_grad_()
            add(log_prob(likelihood, outputs, targets, noise).sum(), point, outputs, design)
        add((log_prior + log_jacobian).sum(), point)
    level, vectors = torch.linalg.eigh((within + within.mT) / 2)
    return slope, vectors * level.clamp_min(LEAST_CURVATURE) @ vectors.mT, cross
