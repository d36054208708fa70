"""Warm start: the mode on some rows by L-BFGS, and curvature there for the first scales.

Rows stand for all of them only where they tie the weights down. A mode of fewer rows than weights fits those rows and no
others, the worse the more rows each of them counts for; the centre of the prior is then the better place to start from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.features.columns import NO_COLUMNS
from bll_pyro.gaussian import Delta, Diagonal
from bll_pyro.guides import Start
from bll_pyro.inference.row_targets import log_prob, output_curvature, values_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.model import GlobalSites
from bll_pyro.optimizers import minimise
from bll_pyro.priors import ScaleMixturePrior, StudentT
from bll_pyro.scope import generator

NUM_START_ROWS = 4096
MAX_START_ROWS = 16_384
ROWS_PER_WEIGHT = 3  # taken where there are so many
NUM_STEPS = 20  # of L-BFGS
MAX_HISTORY = 2**28  # numbers that L-BFGS remembers: a gigabyte
BLOCK_NUMBERS = 2**22  # outputs whose curvature is worked out at once
NUM_ROUNDS = 4
MAX_EASY_ROUNDS = 50
TOLERANCE = 0.003  # relative change of noise and typical weight in a round
NUM_SCALE_STEPS = 3
MAX_MOVE = 5.0  # how far an unconstrained number may move in a round: a factor of 150 for a positive one


def warm_start(
    layer: LastLayer,
    sites: GlobalSites,
    rows: DesignRows,
    num_outputs: int,
    learned: dict[str, Tensor],
) -> Start:
    """Maximise the log joint density on some rows (scaled to all), then read off diagonal curvature.

    The rows are 4,096, or more where there are many weights, up to 16,384. Where they are fewer than the weights, and not
    all rows either, the means stay at the centre of the prior. The scales are
    ``(prior precision + sum_n h_np^2 E[-d2 log p / df_k^2])^(-1/2)``: those of a diagonal Laplace approximation, which a
    variational fit then has only to refine.

    With sampled hyper-parameters, or a prior with a spike, the joint mode is no place to start from: weights and
    their scales vanish there together. See :func:`alternating_start`.
    """
    prior = layer.prior
    mixture = isinstance(prior, ScaleMixturePrior) and not isinstance(prior, StudentT)
    if prior.has_density and (sites.hyper_names or mixture):
        return alternating_start(layer, sites, rows, num_outputs)
    num_weights = num_outputs * rows.num_columns
    part = rows.subset(min(max(NUM_START_ROWS, ROWS_PER_WEIGHT * num_weights), MAX_START_ROWS))
    design, targets = part[:]
    factor = rows.num_rows / part.num_rows
    first = first_weights(layer, rows, num_outputs)
    loc = first.clone().requires_grad_()
    medians = median_sites(sites, design) if sites.num else design.new_zeros(0)
    u = medians.clone().requires_grad_()

    def log_joint() -> Tensor:
        values, log_globals, _ = sites.constrain(u)
        fit = log_prob(layer.likelihood, design @ loc.mT, targets, sites.noise(values)).sum() * factor
        return fit + layer.expected_log_prior(Delta(loc), {**learned, **sites.hyper(values)}) + log_globals

    if prior.has_density and (rows.num_rows <= NUM_START_ROWS or part.num_rows >= num_weights):
        maximise(log_joint, [loc, u] if len(u) else [loc], rows.num_rows)
    if not bool(torch.isfinite(loc).all()) or not bool(torch.isfinite(u).all()):
        loc, u = first, medians
    with torch.no_grad():
        values = sites.constrain(u)[0]
        precision = factor * data_precision(layer, loc, part, sites.noise(values))
    precision += prior_precision(layer, loc.detach(), {**learned, **sites.hyper(values)})
    return Start(u.detach(), loc.detach(), precision.rsqrt(), rows.frame.num_features)


def first_weights(layer: LastLayer, rows: DesignRows, num_outputs: int) -> Tensor:
    """Weights ``[K, P]`` where a search begins: the prior's centre, and a bias that fits the targets without features.

    From 0 a count in the millions is too far away: the first step is the exponential of a large number. A bias whose centre
    is given stays there.
    """
    targets = rows.all_targets
    values, columns = (
        (targets, NO_COLUMNS) if isinstance(targets, Tensor) else (targets.values, targets.columns)
    )
    loc = layer.center(rows.frame.center.new_zeros(num_outputs, rows.num_columns))
    if layer.bias and layer.bias_loc is None and not layer.prior.covers_bias:
        weight = loc.new_ones(len(values)) if columns.weight is None else columns.weight
        exposure = {} if columns.exposure is None else {"exposure": columns.exposure}
        loc[:, -1] = layer.likelihood.typical_outputs(values, weight, **exposure)
    return loc


def data_precision(layer: LastLayer, loc: Tensor, rows: DesignRows, noise: dict[str, Tensor]) -> Tensor:
    """``sum_n h_np^2 E[-d2 log p / df_k^2]`` of rows at means ``loc [K, P]``."""
    total = torch.zeros_like(loc)
    for design, targets in rows.blocks(max(64, BLOCK_NUMBERS // len(loc))):
        curvature = output_curvature(layer.likelihood, design @ loc.mT, targets, noise)
        total.addmm_(curvature.mT, design.square())
    return total


def prior_precision(layer: LastLayer, loc: Tensor, hyper: dict[str, Tensor]) -> Tensor:
    """Expected precision ``[K, P]`` of the prior, ``-(d/ds E_q[log p]) / s`` at unit scales s; 1 where it has no density."""
    if not layer.prior.has_density:
        return torch.ones_like(loc)
    scale = torch.ones_like(loc, requires_grad=True)
    term = layer.expected_log_prior(Diagonal(loc, scale), hyper, generator(0, loc.device))
    return -torch.autograd.grad(term, scale)[0].clamp_max(-1e-4)


def alternating_start(layer: LastLayer, sites: GlobalSites, rows: DesignRows, num_outputs: int) -> Start:
    """Raise the ELBO in turns, from an easy prior to the declared one.

    A Student-t prior with a learned scale finds which weights are large, whatever their size; no barrier lies on its
    way, as it does between a spike and a slab. From there the prior is sharpened in steps (``Prior.softened``), each
    started at the result of the one before (cf. Rockova and George 2014).
    """
    prior, weight_shape = layer.prior, (num_outputs, rows.frame.num_features)
    ascent = CoordinateAscent(layer, rows, num_outputs)
    values = sites.medians()
    if isinstance(prior, ScaleMixturePrior):
        easy = replace(layer, prior=StudentT(loc=prior.loc))
        noise = GlobalSites(easy, weight_shape, tuple(values_of(rows.targets).shape[1:]))
        values |= ascent(easy, noise, noise.medians(), MAX_EASY_ROUNDS)
    size = ascent.typical_size(rows.frame.num_features)
    for step in range(NUM_ROUNDS):
        sharper = replace(layer, prior=prior.softened(weight_shape, size, step / (NUM_ROUNDS - 1)))
        values = ascent(sharper, sites, values, 1)
    u = sites.unconstrain(values).to(ascent.loc) if sites.num else ascent.loc.new_zeros(0)
    finite = all(bool(torch.isfinite(value).all()) for value in (ascent.loc, ascent.scale, u))
    if not finite:
        center = ascent.center
        return Start(median_sites(sites, center), center, torch.ones_like(center), rows.frame.num_features)
    return Start(u, ascent.loc, ascent.scale, rows.frame.num_features)


class CoordinateAscent:
    """Coordinate ascent on the ELBO of independent weights ``loc, scale [K, P]``, with the global unknowns at a point.

    ========================================== ===============================================================
    in turn                                    maximises
    ========================================== ===============================================================
    means m                                    log likelihood at m + ``E_q[log p(W | hyper)]``
    scales s                                   ``s^-2 = curvature of the likelihood + expected prior precision``
    noise and hyper-parameters                 both terms at m, s (to second order) + their own log density
    ========================================== ===============================================================

    Second moments ``m^2 + s^2`` stay above zero, and so do the scales of the prior that are fitted to them.
    """

    def __init__(self, layer: LastLayer, rows: DesignRows, num_outputs: int) -> None:
        self.part = rows.subset(NUM_START_ROWS)
        self.design, self.targets = self.part[:]
        self.factor, self.num_rows = rows.num_rows / self.part.num_rows, rows.num_rows
        self.center = layer.center(self.design.new_zeros(num_outputs, rows.num_columns))
        self.loc = first_weights(layer, rows, num_outputs)
        self.scale = torch.ones_like(self.loc)

    def typical_size(self, num_features: int) -> float:
        """Median over the weights of the root of the second moment about the prior's centre."""
        return float(
            ((self.loc - self.center).square() + self.scale.square())[:, :num_features].median().sqrt()
        )

    def __call__(
        self, layer: LastLayer, sites: GlobalSites, values: dict[str, Tensor], num_rounds: int
    ) -> dict[str, Tensor]:
        """Run rounds from given noise and hyper-parameters until little changes; return the new ones."""
        num_features = self.loc.shape[1] - int(layer.bias)
        learned = layer.prior.learned_start((self.loc.shape[0], num_features))
        learned = {name: value.to(self.loc) for name, value in learned.items()}
        values = {name: value.to(self.loc) for name, value in values.items() if name in sites.priors}
        before = torch.full((), torch.inf)
        for _ in range(num_rounds):
            hyper = {**learned, **sites.hyper(values)}
            self._move_means(layer, sites.noise(values), hyper)
            self._move_scales(layer, sites.noise(values), hyper)
            if learned:
                learned = layer.prior.learned_update(self.loc[:, :num_features], self.scale[:, :num_features])
            if sites.num:
                values = self._move_globals(layer, sites, values, learned)
            sizes = [v.flatten() for v in sites.noise(values).values()]
            now = torch.cat([self.loc.new_tensor([self.typical_size(num_features)]), *sizes])
            if bool(((now - before).abs() < TOLERANCE * now.abs()).all()):
                break
            before = now
        return values

    def _log_prior(self, layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor]) -> Tensor:
        # the same draws every time, where there is no closed form: L-BFGS needs a fixed objective
        return layer.expected_log_prior(Diagonal(loc, scale), hyper, generator(0, loc.device))

    def _move_means(self, layer: LastLayer, noise: dict[str, Tensor], hyper: dict[str, Tensor]) -> None:
        loc = self.loc.clone().requires_grad_()

        def objective() -> Tensor:
            fit = log_prob(layer.likelihood, self.design @ loc.mT, self.targets, noise).sum() * self.factor
            return fit + self._log_prior(layer, loc, self.scale, hyper)

        maximise(objective, [loc], self.num_rows)
        self.loc = loc.detach()

    def _move_scales(self, layer: LastLayer, noise: dict[str, Tensor], hyper: dict[str, Tensor]) -> None:
        precision = self.factor * data_precision(layer, self.loc, self.part, noise)
        for _ in range(NUM_SCALE_STEPS):
            scale = self.scale.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self._log_prior(layer, self.loc, scale, hyper), scale)
            self.scale = (precision + (-slope / self.scale).clamp_min(1e-4)).rsqrt()

    def _move_globals(
        self, layer: LastLayer, sites: GlobalSites, values: dict[str, Tensor], learned: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        outputs, variance = self.design @ self.loc.mT, self.design.square() @ self.scale.square().mT
        origin, likelihood = sites.unconstrain(values), layer.likelihood
        move = torch.zeros_like(origin, requires_grad=True)

        def moved() -> Tensor:
            return origin + MAX_MOVE * torch.tanh(move / MAX_MOVE)

        def objective() -> Tensor:
            values, log_density, log_jacobian = sites.constrain(moved())
            noise, total = sites.noise(values), log_density + log_jacobian
            if noise:
                lost = 0.5 * (output_curvature(likelihood, outputs, self.targets, noise) * variance).sum()
                fit = log_prob(likelihood, outputs, self.targets, noise).sum()
                total = total + (fit - lost) * self.factor
            return total + self._log_prior(layer, self.loc, self.scale, {**learned, **sites.hyper(values)})

        maximise(objective, [move], self.num_rows)
        return {name: value.detach() for name, value in sites.constrain(moved().detach())[0].items()}


def maximise(objective: Callable[[], Tensor], parameters: list[Tensor], num_rows: int) -> None:
    """Raise a log density by at most 20 steps of L-BFGS, in place."""
    num_numbers = sum(parameter.numel() for parameter in parameters)
    history = max(1, min(NUM_STEPS, MAX_HISTORY // (2 * num_numbers)))
    minimise(lambda: -objective() / num_rows, parameters, NUM_STEPS, history)


def median_sites(sites: GlobalSites, like: Tensor) -> Tensor:
    """Unconstrained global vector at the median of each prior."""
    return sites.unconstrain(sites.medians()).to(like) if sites.num else like.new_zeros(0)
