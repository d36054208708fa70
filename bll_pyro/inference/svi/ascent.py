"""Few rows and independent weights: the ELBO as a fixed function of all rows, raised by L-BFGS.

Steps of Adam along drawn gradients take hundreds of evaluations whatever the number of rows. With a fixed set of S
quasi-random points in place of draws the ELBO is a function like any other, and some tens of evaluations are enough:

``1/S sum_s [sum_n log p(y_n | m_n + v_n e_s, u_s) + log p(u_s)] + E_q[log p(W, b)] + H[q]``

The coordinates are those in which the start is a standard normal, ``loc = loc_0 + scale_0 z`` and ``scale = scale_0 exp(t)``:
there the ELBO curves about as much in all directions. The points are centred and have unit variance, so that expectations of
linear functions are exact. Labels, and two classes, need one output at a time: there the points are a grid with weights, which
is far more exact. Learned prior scales are at their best values for each q, in closed form.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bll_pyro.gaussian import Diagonal, LatentGaussian, OutputGaussian, normal_grid, normal_points
from bll_pyro.guides import Start
from bll_pyro.guides.diagonal import DiagonalGuide
from bll_pyro.inference.base import Trace
from bll_pyro.inference.row_targets import expected_log_prob, log_prob, values_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Bernoulli, Categorical
from bll_pyro.model import Model
from bll_pyro.observation import Stage, StopTraining, stage
from bll_pyro.optimizers import minimise

MAX_ROWS = 4096  # of more, batches are enough to move by
MOST_NUMBERS = 2**19  # outputs of all rows at all points
FEWEST_POINTS, MOST_POINTS = 32, 256
GRID = 24, 0.45  # points in one dimension, and the distance between two
MAX_STEPS = 400
LATE, RISE = 50, 0.1  # evaluations, and nats in them, that a search without an end may still gain
TOLERANCE = 1e-4  # nats by which the ELBO may still rise: half the squared distance in posterior scales, over all unknowns


def can_ascend(objective: Objective, rows: DesignRows) -> bool:
    """Whether the guide is one of independent weights, and the ELBO a function of few rows without draws of its own."""
    layer, model = objective.layer, objective.model
    return (
        objective.closed
        and isinstance(objective.guide, DiagonalGuide)
        and not model.global_sites.hyper_names
        and not layer.prior.needs_noise
        and rows.num_rows <= MAX_ROWS
        and rows.num_rows * model.num_outputs * FEWEST_POINTS <= MOST_NUMBERS
    )


def ascend(objective: Objective, rows: DesignRows) -> Trace:
    """Raise the ELBO of an objective to its maximum, in place."""
    function, found = FixedELBO(objective, rows), None
    with stage("ascent", num_rows=rows.num_rows) as steps:
        watched = WatchedELBO(function, steps, rows.log_scale) if steps.observed else None
        try:
            found = minimise(
                watched or function, [function.place, function.growth], MAX_STEPS, tolerance=TOLERANCE
            )
        except StopTraining:
            assert watched is not None
            watched.go_back()
    objective.guide.take(*function.marginals())
    function()  # learned scales at the result
    elbo = torch.stack(function.values).cpu()
    trace = Trace(elbo=elbo)
    if found is None:
        trace.end_early(f"the ascent after {len(elbo) - 1} evaluations")
    elif not bool(torch.isfinite(found.value).all()):
        trace.stop("the ELBO is not finite; use standardize=True, or a tighter prior")
    elif not bool(found.converged.all()) and (rise := late_rise(elbo)) > RISE:
        trace.stop(
            f"the ELBO was still rising, by {rise:.3g} nats in the last {LATE} of {found.num_evaluations} evaluations; use a "
            "tighter prior such as priors.Normal(scale=1.0), or bll.Laplace()"
        )
    return trace


def independent_start(layer: LastLayer, model: Model, rows: DesignRows, start: Start) -> Start:
    """Where the ELBO of independent weights is highest, for guides that take steps from there; ``start`` if it is no such function.

    Learned scales follow the weights, step by step. From a start at which they are too wide steps end before the scales are down.
    """
    objective = Objective(layer, model, DiagonalGuide(model, start), rows.num_rows)
    if not can_ascend(objective, rows):
        return start
    function = FixedELBO(objective, rows.gathered())
    minimise(function, [function.place, function.growth], MAX_STEPS, tolerance=TOLERANCE)
    loc, scale = (value.detach() for value in function.marginals())
    if not bool(torch.isfinite(loc + scale.log()).all()):
        return start
    guide = function.guide
    (u, weight_loc), (_, weight_scale) = guide.matrix(loc), guide.matrix(scale)
    return replace(start, globals_loc=u, loc=weight_loc, scale=weight_scale)


def late_rise(elbo: Tensor) -> float:
    """Nats by which the best of the last 50 evaluations is above the best of those before."""
    before = elbo[:-LATE] if len(elbo) > LATE else elbo[:1]
    return float(elbo.max() - before.max())


class FixedELBO:
    """Minus the ELBO, nats; a call evaluates it at the present ``place`` z and ``growth`` t, ``[L]`` each."""

    def __init__(self, objective: Objective, rows: DesignRows) -> None:
        self.objective = objective
        self.guide: DiagonalGuide = objective.guide  # type: ignore[assignment]
        self.design, self.targets = rows[:]
        self.squares = self.design.square()
        self.loc, self.scale = (value.detach().clone() for value in self.guide.marginals())
        self.place = torch.zeros_like(self.loc, requires_grad=True)
        self.growth = torch.zeros_like(self.loc, requires_grad=True)
        self.values: list[Tensor] = []  # the ELBO at all evaluations so far
        self.num_globals, num_outputs = self.guide.num_globals, objective.model.num_outputs
        self.closed = objective.layer.likelihood.closed_expectation
        self.by_contrast = (
            isinstance(objective.layer.likelihood, Categorical) and objective.layer.likelihood.is_contrast
        )
        if self.by_contrast:
            num_outputs = 1
            labels = values_of(self.targets).to(self.loc)[:, None]
            self.targets = (
                labels if isinstance(self.targets, Tensor) else replace(self.targets, values=labels)
            )
        size = self.num_globals if self.closed else self.num_globals + num_outputs
        self.points = self.loc.new_zeros(1, 0)  # [S, U + K], or [S, U] where the likelihood has a closed form
        self.weights = self.loc.new_ones(1)
        if not self.num_globals and (self.by_contrast or type(objective.layer.likelihood) is Bernoulli):
            points, self.weights = (values.to(self.loc) for values in normal_grid(*GRID))
            # the same ones serve all labels: the log density is a sum over them
            self.points = points[:, None]
        elif size:
            num_points = FEWEST_POINTS
            while num_points < MOST_POINTS and 2 * num_points * rows.num_rows * num_outputs <= MOST_NUMBERS:
                num_points *= 2
            points = normal_points(num_points, size).to(self.loc)
            self.points = (points - points.mean(0)) / points.std(0, correction=0)
            self.weights = self.loc.new_full((num_points,), 1 / num_points)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations ``[L]``."""
        return self.loc + self.scale * self.place, self.scale * self.growth.exp()

    def __call__(self) -> Tensor:
        """Minus the ELBO."""
        objective, sites = self.objective, self.objective.model.global_sites
        loc, scale = self.marginals()
        (u_loc, weight_loc), (u_scale, weight_scale) = self.guide.matrix(loc), self.guide.matrix(scale)
        latents = LatentGaussian(Diagonal(weight_loc, weight_scale), u_loc, u_scale)
        variance = self.squares @ weight_scale.square().mT
        spread = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        outputs = OutputGaussian(self.design @ weight_loc.mT, spread)
        values, log_prior, log_jacobian = sites.constrain(
            u_loc + u_scale * self.points[:, : self.num_globals]
        )
        noise = {name: value[:, None] for name, value in sites.noise(values).items()}
        likelihood = objective.layer.likelihood
        if self.by_contrast:  # two classes
            assert isinstance(likelihood, Categorical)
            outputs = likelihood.contrast(outputs)
            likelihood = Bernoulli()
        if self.closed:
            fit = expected_log_prob(likelihood, outputs, self.targets, None, noise).sum(-1)
        else:
            draws = outputs.at(self.points[:, None, self.num_globals :])
            fit = log_prob(likelihood, draws, self.targets, noise).sum(-1)
        expected = self.weights @ (fit + log_prior + log_jacobian).expand(len(self.weights))
        total = expected + latents.entropy()
        total = total + objective.layer.expected_log_prior(latents.weights, objective.learn(latents))
        self.values.append(total.detach())
        return -total


class WatchedELBO:
    """The same function, whose evaluations are steps of a stage; a callback may end them at the best one so far."""

    def __init__(self, function: FixedELBO, steps: Stage, log_scale: float) -> None:
        self.function, self.steps, self.log_scale = function, steps, log_scale
        self.lowest, self.best = math.inf, (function.place.detach().clone(), function.growth.detach().clone())

    def __call__(self) -> Tensor:
        """Minus the ELBO."""
        loss = self.function()
        value = float(loss.detach())
        if value < self.lowest:
            self.lowest = value
            self.best = self.function.place.detach().clone(), self.function.growth.detach().clone()
        self.steps.advance(elbo=-loss.detach() - self.log_scale)
        return loss

    @torch.no_grad()
    def go_back(self) -> None:
        """To where the ELBO was highest."""
        self.function.place.copy_(self.best[0])
        self.function.growth.copy_(self.best[1])
