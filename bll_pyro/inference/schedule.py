"""How every stochastic fit steps: Adam, with a rate that falls to zero along half a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

BETAS = (0.9, 0.99)  # of the running averages: a fit is some hundred steps long
LEARNING_RATE = 0.02
MAX_FEATURES = 128  # up to which it serves


def default_rate(num_features: int) -> float:
    """Learning rate for rows of D standardised features: 0.02, beyond 128 of them ``0.02 sqrt(128 / D)``.

    Adam moves every weight by about the rate whatever its slope, and so an output by up to the rate times the sum of
    the features. The more weights share an output, the smaller each is, and the smaller the steps that suit it.
    """
    return LEARNING_RATE * min(1.0, math.sqrt(MAX_FEATURES / num_features))


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Adam:
    """Adam in one fused step."""
    return torch.optim.Adam(parameters, lr=learning_rate, betas=BETAS, fused=True)


def half_cosine(done: float) -> float:
    """Factor of the learning rate after a share ``done`` of all steps: from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
