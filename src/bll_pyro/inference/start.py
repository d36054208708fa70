"""Warm start: the mode on some rows by L-BFGS, and curvature there for the first scales."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.gaussian import Delta
from bll_pyro.guides import Start
from bll_pyro.inference.objective import log_prior
from bll_pyro.inference.rows import Rows
from bll_pyro.layer import LastLayer
from bll_pyro.model import Globals

NUM_START_ROWS = 4096


def warm_start(
    layer: LastLayer, globals_: Globals, rows: Rows, num_outputs: int, learned: dict[str, Tensor], num_steps: int = 20
) -> Start:
    """Maximise the log joint density on up to 4,096 rows (scaled to all), then read off diagonal curvature.

    The scales are ``(prior precision + sum_n h_np^2 E[-d2 log p / df_k^2])^(-1/2)``: those of a diagonal Laplace
    approximation, which a variational fit then has only to refine.
    """
    part = rows.subset(NUM_START_ROWS)
    design, targets = part[:]
    factor = rows.num_rows / part.num_rows
    loc = design.new_zeros(num_outputs, rows.num_columns, requires_grad=True)
    u = median_globals(globals_, design).requires_grad_()
    optimizer = torch.optim.LBFGS([loc, u] if len(u) else [loc], max_iter=num_steps, line_search_fn="strong_wolfe")

    def negative_log_joint() -> Tensor:
        optimizer.zero_grad()
        values, log_globals, _ = globals_.constrain(u)
        fit = layer.likelihood.log_prob(design @ loc.mT, targets, **globals_.noise(values)).sum() * factor
        prior = log_prior(layer, Delta(loc), {**learned, **globals_.hyper(values)})
        loss = -(fit + prior + log_globals) / rows.num_rows
        loss.backward()
        return loss

    if layer.prior.has_density:
        optimizer.step(negative_log_joint)
    if not bool(torch.isfinite(loc).all()) or not bool(torch.isfinite(u).all()):
        loc, u = torch.zeros_like(loc), median_globals(globals_, design)
    with torch.no_grad():
        values = globals_.constrain(u)[0]
        curvature = layer.likelihood.output_curvature(design @ loc.mT, **globals_.noise(values))
        precision = factor * curvature.mT @ design.square() + 1.0
    num_features = rows.frame.num_features
    return Start(u.detach(), loc.detach(), precision.rsqrt(), num_features)


def median_globals(globals_: Globals, like: Tensor) -> Tensor:
    """Unconstrained global vector at the median of each prior, by 101 draws where there is no closed form."""
    if not globals_.num:
        return like.new_zeros(0)
    values = {k: p.sample((101,)).median(0).values for k, p in globals_.priors.items()}
    return globals_.unconstrain(values).detach().to(like)
