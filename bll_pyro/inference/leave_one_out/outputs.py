"""Outputs of rows by the fit without them, at a cost that every fit can afford.

For few rows of a small layer they are those of :mod:`bll_pyro.inference.leave_one_out.row_by_row`, with all that ties outputs.
Beyond that some rows stand for all, and each output is taken out by itself: with the response r, the curvature l and the
gradient g of one output, ``a = r l``,

``m - r g / (1 - a)``  and  ``v + r a / (1 - a)``.

What is left out are the ties of a softmax between its outputs, which matter where rows have much influence, and many rows have
little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro import curvatures
from bll_pyro.features.columns import Columns
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.gaussian.information import DiagonalInformation
from bll_pyro.inference.leave_one_out.response import diagonal_of, expected_prior_precision
from bll_pyro.inference.leave_one_out.row_by_row import CHUNK_NUMBERS, MAX_SHARE, RowByRow
from bll_pyro.inference.row_targets import NoiseValues, Targets, log_prob, output_curvature
from bll_pyro.inference.rows import DesignRows, FeatureRows, is_streamed
from bll_pyro.observation import stage
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.ranks import ALONE, Places, Processes
from bll_pyro.scope import generator

MOST_ROWS, FEWEST_ROWS = 2048, 256  # rows that are left out,
MOST_OUTPUTS = 2**20  # and their outputs
MAX_TIED_COLUMNS = 2048  # largest K P of a joint precision,
MAX_TIED_WORK = 2**31  # and largest N (K P)^2
MAX_BLOCK_WORK = 2**35  # largest N K P^2 of the sums over rows; with more, some rows stand for all
ROWS_PER_NUMBER = 32  # rows in these sums for each output or column that are enough
MAX_BLOCK_NUMBERS = 2**25  # largest K P^2; with more, columns are independent too
MOST_READ = 65_536  # rows of a store that is read ahead, each a read of its own
NUM_POINTS = 64  # quasi-random points of the expectations, of each of few rows
SOME_POINTS, FEW_POINTS = 16, 8  # of many rows, and of sums over rows


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Rows by number ``[n]``, the outputs of each by the fit without it, their targets, weights and exposures."""

    index: Int[Tensor, " n"]
    outputs: OutputGaussian
    targets: Tensor
    columns: Columns


@torch.no_grad()
def outputs_left_out(
    posterior: GaussianPosterior,
    features: FeatureRows,
    targets: Tensor,
    columns: Columns,
    seed: int,
    at_mode: bool = False,
    ranks: Processes = ALONE,
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
    at_mode
        Whether the posterior was made at the mode, see :class:`bll_pyro.inference.base.Inference`.
    ranks
        Who shares the rows; all get the same outputs.
    """
    places = Places(ranks, len(targets))
    num_all, num_outputs, num_columns = places.num_rows, *posterior.latents.weights.loc.shape
    size = num_outputs * num_columns
    is_tied = size <= MAX_TIED_COLUMNS and num_all * size**2 <= MAX_TIED_WORK
    order = torch.randperm(num_all, generator=generator(seed))
    num_chosen = min(num_all, MOST_ROWS, max(FEWEST_ROWS, MOST_OUTPUTS // num_outputs))
    enough = max(MOST_ROWS, ROWS_PER_NUMBER * max(num_outputs, num_columns))
    num_summed = min(num_all, enough, max(num_chosen, MAX_BLOCK_WORK // (size * num_columns)))
    if is_streamed(features) and num_summed < num_all:
        num_summed = min(num_summed, MOST_READ)
    index = order[:num_summed]
    index = index if num_summed < num_all else torch.arange(num_all)
    all_weight = ranks.total(columns.total_weight(len(targets)))
    features, targets, columns = _taken(features, targets, columns, index, places)
    times = all_weight / columns.total_weight(num_summed) if num_summed < num_all else 1.0
    frame = posterior.frame
    rows = DesignRows(features, targets, frame, frame.center.device, columns)
    with stage("left-out rows", rows.num_rows) as seen:
        near = replace(RowByRow.of(posterior, NUM_POINTS, at_mode=at_mode), seen=seen)
        if is_tied:
            kept = near.all_derivatives(rows)
            answer = near.response(posterior, rows, kept)
            return LeftOut(index, near.outputs_without(answer, *rows[:], kept)[0], targets, columns)
        chosen = order[:num_chosen].sort().values if num_summed == num_all else torch.arange(num_chosen)
        outputs = _one_by_one(near, posterior, rows, chosen, times)
        return LeftOut(index[chosen], outputs, targets[chosen], columns[chosen])


def _taken(
    features: FeatureRows,
    targets: Tensor,
    columns: Columns,
    index: Tensor,
    places: Places,
) -> tuple[Tensor, Tensor, Columns]:
    """Features, targets and columns of the rows of all ranks with these numbers."""

    def read(own: Tensor) -> list[Tensor | None]:
        some = columns[own]
        return [features[own], targets[own], some.weight, some.exposure]

    found, values, *others = places.numbered(index, read)
    assert found is not None and values is not None
    return found, values, Columns(*others) if columns else columns


def _one_by_one(
    near: RowByRow, posterior: GaussianPosterior, rows: DesignRows, chosen: Tensor, times: float
) -> OutputGaussian:
    """Each output of the chosen rows by itself, from sums in which each row counts ``times``."""
    num_outputs, num_columns = near.weights.loc.shape
    prior = expected_prior_precision(posterior)
    form: curvatures.Curvature = curvatures.Full()
    if prior.dim() == 4 or num_outputs * num_columns**2 > MAX_BLOCK_NUMBERS:
        form, prior = curvatures.Diagonal(), diagonal_of(prior)
    sums = form.zeros(num_outputs, num_columns, True, near.weights.loc)
    for design, targets in rows.blocks(max(1, CHUNK_NUMBERS // num_outputs)):
        information = _information(near, near.weights.outputs(design), targets)
        form.add(sums, design, DiagonalInformation(times * information))
        near.seen.advance(len(design))
    weights = form.precision(sums, prior.to(sums[0])).gaussian(near.weights.loc.double())
    design, targets = rows[chosen.to(rows.device)]
    outputs = near.weights.outputs(design)
    gradient, information = _gradient(near, outputs, targets), _information(near, outputs, targets)
    response = weights.outputs(design.double()).variance.to(design)
    # a row that counts several times in the sums counts once in the fit
    response = response / (1 - (times - 1) * response * information).clamp_min(1 - MAX_SHARE)
    own = (response * information).clamp_max(MAX_SHARE)
    mean = outputs.mean - response * gradient / (1 - own)
    if (
        outputs.scale is None or outputs.tied
    ):  # what is added to a covariance of outputs is small where rows are many
        return replace(outputs, loc=mean)
    return replace(outputs, loc=mean, scale=(outputs.variance + response * own / (1 - own)).sqrt())


def _gradient(near: RowByRow, outputs: OutputGaussian, targets: Targets) -> Float[Tensor, "N K"]:
    """Expected gradient of the log likelihood of all rows."""
    if near.likelihood.has_slope and not near.noise and isinstance(targets, Tensor):
        draws = torch.stack([draw for draw, _ in _draws(near, outputs, SOME_POINTS)])
        return near.likelihood.slope(draws, targets)[1].mean(0)
    slopes: list[Tensor] = []
    for draw, noise in _draws(near, outputs, SOME_POINTS):
        with torch.enable_grad():
            leaf = draw.detach().requires_grad_()
            slopes += torch.autograd.grad(log_prob(near.likelihood, leaf, targets, noise).sum(), leaf)
    return torch.stack(slopes).mean(0)


def _information(near: RowByRow, outputs: OutputGaussian, targets: Targets) -> Float[Tensor, "N K"]:
    """Diagonal of the expected information of all rows, which need fewer draws: it is summed over them."""
    parts = [
        output_curvature(near.likelihood, draw, targets, noise)
        for draw, noise in _draws(near, outputs, FEW_POINTS)
    ]
    return torch.stack(parts).mean(0)


def _draws(near: RowByRow, outputs: OutputGaussian, number: int) -> list[tuple[Tensor, NoiseValues]]:
    """Draws ``[N, K]`` with the mean of the outputs, each with a value of the noise; of a mode the mean alone."""
    draws = outputs.mean[None] if near.at_mode else outputs.draws(number)
    return [
        (draw, {name: value[index % len(value)] for name, value in near.noise.items()})
        for index, draw in enumerate(draws + (outputs.mean - draws.mean(0)))
    ]
