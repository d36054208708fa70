"""Negative log likelihood on held-out rows, for early stopping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bll_pyro.inference.targets import Targets, known_of, values_of, weight_of
from bll_pyro.posterior import Posterior

NUM_POINTS = 64
CHUNK_NUMBERS = 4_000_000


@torch.no_grad()
def held_out_loss(posterior: Posterior, batches: Iterable[tuple[Tensor, Targets]]) -> float:
    """(Weighted) mean negative log predictive density, nats a row, over batches of raw features and targets of the frame."""
    likelihood = posterior.layer.likelihood
    noise = {name: value[:, None] for name, value in posterior.noise(NUM_POINTS).items()}
    size = max(1, CHUNK_NUMBERS // (NUM_POINTS * posterior.num_outputs))
    total, num_rows = 0.0, 0.0
    for features, targets in batches:
        for part, values in zip(features.split(size), targets.split(size), strict=True):
            log_probs = likelihood.predictive_log_prob(
                posterior.outputs(part), values_of(values), NUM_POINTS, 0, **noise, **known_of(values)
            )
            weight = weight_of(values)
            total -= float((log_probs if weight is None else weight * log_probs).sum())
            num_rows += len(part) if weight is None else float(weight.sum())
    return total / num_rows
