"""Negative log predictive density of rows that were not fitted: for early stopping, and for the choice of a prior scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bll_pyro.gaussian import Outputs
from bll_pyro.inference.row_targets import NoiseValues, Targets, row_data, values_of, weight_of
from bll_pyro.likelihoods import Likelihood
from bll_pyro.posterior import Posterior

NUM_POINTS = 64
CHUNK_NUMBERS = 4_000_000


def rows_at_once(num_points: int, num_outputs: int) -> int:
    """Rows whose outputs at all points are held at once."""
    return max(1, CHUNK_NUMBERS // (num_points * num_outputs))


@torch.no_grad()
def total_loss(
    likelihood: Likelihood,
    outputs: Callable[[Tensor], Outputs],
    blocks: Iterable[tuple[Tensor, Targets]],
    noise: NoiseValues,
    num_points: int,
) -> float:
    """(Weighted) negative log predictive density, nats, summed over blocks of rows; noise as draws ``[S, 1, ...]``."""
    total = 0.0
    for rows, targets in blocks:
        log_probs = likelihood.predictive_log_prob(
            outputs(rows), values_of(targets), num_points, 0, **noise, **row_data(targets)
        )
        weight = weight_of(targets)
        total -= float((log_probs if weight is None else weight * log_probs).sum())
    return total


def held_out_loss(posterior: Posterior, batches: Iterable[tuple[Tensor, Targets]]) -> float:
    """(Weighted) mean negative log predictive density, nats a row, over batches of raw features and targets of the frame."""
    noise = {name: value[:, None] for name, value in posterior.noise(NUM_POINTS).items()}
    size = rows_at_once(NUM_POINTS, posterior.num_outputs)
    total, num_rows = 0.0, 0.0
    for features, targets in batches:
        blocks = zip(features.split(size), targets.split(size), strict=True)
        total += total_loss(posterior.layer.likelihood, posterior.outputs, blocks, noise, NUM_POINTS)
        weight = weight_of(targets)
        num_rows += len(features) if weight is None else float(weight.sum())
    return total / num_rows
