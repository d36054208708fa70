"""Outputs of rows by the fit without them, at a cost that every fit can afford.

For few rows of a small layer they are those of :mod:`bll_pyro.inference.leave_one_out.row_by_row`, with all that ties outputs.
Beyond that some rows stand for all, and each output is taken out by itself: with the response r, the curvature l and the
gradient g of one output, ``a = r l``,

``m - r g / (1 - a)``  and  ``v + r a / (1 - a)``.

What is left out are the ties of a softmax between its outputs, which matter where rows have much influence, and many rows have
little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro import curvatures
from bll_pyro.features.columns import Columns
from bll_pyro.gaussian import Delta, OutputGaussian
from bll_pyro.gaussian.information import DiagonalInformation
from bll_pyro.inference.leave_one_out.response import diagonal_of, expected_prior_precision
from bll_pyro.inference.leave_one_out.row_by_row import MAX_SHARE, RowByRow
from bll_pyro.inference.rows import DesignRows, FeatureRows, Targets, log_prob, output_curvature
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.scope import generator

MOST_ROWS, FEWEST_ROWS = 2048, 256  # rows that are left out,
MOST_OUTPUTS = 2**20  # and their outputs
MAX_TIED_COLUMNS = 2048  # largest K P of a joint precision,
MAX_TIED_WORK = 2**31  # and largest N (K P)^2
MAX_BLOCK_NUMBERS = 2**25  # largest K P^2; with more, columns are independent too
NUM_POINTS = 64  # quasi-random points of the expectations


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Rows by number ``[n]``, and the outputs of each by the fit without it."""

    index: Int[Tensor, " n"]
    outputs: OutputGaussian


@torch.no_grad()
def outputs_left_out(
    posterior: GaussianPosterior, features: FeatureRows, targets: Tensor, columns: Columns, seed: int
) -> LeftOut:
    """Leave rows out, one at a time: all of them, or as many as are enough for one number, drawn without replacement.

    Parameters
    ----------
    posterior
        The fit of all rows.
    features, targets, columns
        These rows: ``[N, D]``, as the likelihood uses them, and their weights and exposures.
    seed
        Of the rows that are drawn.
    """
    num_all, num_outputs = len(targets), posterior.num_outputs
    most = min(MOST_ROWS, max(FEWEST_ROWS, MOST_OUTPUTS // num_outputs))
    index = torch.arange(num_all)
    if num_all > most:
        index = torch.randperm(num_all, generator=generator(seed))[:most].sort().values
        features, targets = features[index], targets[index]
        columns, all_columns = columns[index], columns
        share = all_columns.total_weight(num_all) / columns.total_weight(len(index))
    else:
        share = 1.0
    frame = posterior.frame
    rows = DesignRows(features, targets, frame, frame.center.device, columns)
    near = RowByRow.of(posterior, NUM_POINTS)
    size = num_outputs * rows.num_columns
    if share == 1.0 and size <= MAX_TIED_COLUMNS and rows.num_rows * size**2 <= MAX_TIED_WORK:
        kept = near.all_derivatives(rows)
        answer = near.response(posterior, rows, kept)
        return LeftOut(index, near.outputs_without(answer, *rows[:], kept)[0])
    return LeftOut(index, _one_by_one(near, posterior, rows, share))


def _one_by_one(near: RowByRow, posterior: GaussianPosterior, rows: DesignRows, share: float) -> OutputGaussian:
    """Each output of each row by itself; each row counts for ``share`` of its kind."""
    num_outputs, num_columns = near.weights.loc.shape
    design, targets = rows[:]
    outputs = near.weights.outputs(design)
    gradient, curvature = _slopes(near, outputs, targets)
    prior = expected_prior_precision(posterior)
    form: curvatures.Curvature = curvatures.Full()
    if prior.dim() == 4 or num_outputs * num_columns**2 > MAX_BLOCK_NUMBERS:
        form, prior = curvatures.Diagonal(), diagonal_of(prior)
    sums = form.zeros(num_outputs, num_columns, True, near.weights.loc)
    form.add(sums, design, DiagonalInformation(share * curvature))
    weights = form.precision(sums, prior.to(sums[0])).gaussian(near.weights.loc.double())
    response = weights.outputs(design.double()).variance.to(design)
    own = (response * curvature).clamp_max(MAX_SHARE)
    mean = outputs.mean - response * gradient / (1 - own)
    if isinstance(near.weights, Delta):
        return OutputGaussian(mean)
    return OutputGaussian(mean, (outputs.variance + response * own / (1 - own)).sqrt())


def _slopes(
    near: RowByRow, outputs: OutputGaussian, targets: Targets
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Expected gradient, and diagonal of the expected information, of the log likelihood of all rows."""
    draws = outputs.draws(near.num_points)
    draws = draws + (outputs.mean - draws.mean(0))
    total, curvature = torch.zeros_like(outputs.mean), torch.zeros_like(outputs.mean)
    for number, draw in enumerate(draws):
        noise = {name: value[number % len(value)] for name, value in near.noise.items()}
        with torch.enable_grad():
            leaf = draw.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(near.likelihood, leaf, targets, noise).sum(), leaf)
        total += slope
        curvature += output_curvature(near.likelihood, draw, targets, noise)
    return total / len(draws), curvature / len(draws)
