"""Draws of the weights with the largest posterior mean, without holding all draws of all weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bll_pyro.posterior import DrawsPosterior, Posterior
from bll_pyro.scope import own_modes

MOST_DRAWS, FEWEST_DRAWS = 400, 40
MOST_NUMBERS = 250_000_000  # drawn in one pass over all weights
AT_ONCE = 20_000_000  # numbers that are held at a time


@dataclass(frozen=True, eq=False)
class LargestWeights:
    """Weights of a fit with the largest absolute posterior mean.

    Parameters
    ----------
    mean
        Posterior means of all weights ``[K, D]``, standardised.
    outputs
        Numbers of the outputs that are kept.
    features
        Numbers of the features that are kept.
    draws
        Draws ``[S, outputs, features]``.
    """

    mean: np.ndarray
    outputs: np.ndarray
    features: np.ndarray
    draws: np.ndarray


@own_modes(gradients=False)
def largest_weights(posterior: Posterior, num_weights: int, seed: int) -> LargestWeights:
    """The outputs with the largest weights, ``num_weights`` at most, and the largest weights of each.

    Of each output as many as come to ``num_weights`` together, at least one.
    """
    total, number = torch.zeros(()), 0
    for part in _draws(posterior, seed):
        total, number = total + part.double().sum(0), number + len(part)
    mean = (total / number).cpu().numpy()
    largest = np.abs(mean)
    outputs = np.sort(np.argsort(-largest.max(1), kind="stable")[:num_weights])
    each = max(1, num_weights // len(outputs))
    features = np.unique(np.argsort(-largest[outputs], 1, kind="stable")[:, :each])
    index = (torch.from_numpy(outputs)[:, None], torch.from_numpy(features))
    kept = [part.cpu()[:, index[0], index[1]] for part in _draws(posterior, seed)]
    return LargestWeights(mean, outputs, features, torch.cat(kept).double().numpy())


def _draws(posterior: Posterior, seed: int) -> Iterator[Tensor]:
    """Draws ``[s, K, D]``, part by part, the same each time."""
    if isinstance(posterior, DrawsPosterior):
        yield posterior.sample(None)["weight"].flatten(0, 1)
        return
    size = posterior.num_outputs * (posterior.frame.num_features + 1)
    wanted = min(MOST_DRAWS, max(FEWEST_DRAWS, MOST_NUMBERS // size))
    at_once = max(1, min(wanted, AT_ONCE // size))
    for part in range(-(-wanted // at_once)):
        yield posterior.sample(at_once, seed + part)["weight"].flatten(0, 1)
