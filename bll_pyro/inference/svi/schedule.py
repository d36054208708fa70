"""Steps of Adam whose learning rates fall to zero along half a cosine, and copies of the state that they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)  # decay of Adam's running averages: a fit has some hundred steps
LEARNING_RATE = 0.02  # for up to MAX_FEATURES features
MAX_FEATURES = 128

State = Sequence[Tensor]
"""Copies of tensors, in the order in which they are put back."""


def default_rate(num_features: int) -> float:
    """Learning rate for rows of D standardised features: 0.02, beyond 128 of them ``0.02 sqrt(128 / D)``.

    Adam moves every weight by about the rate whatever its gradient, and so an output by up to the rate times the sum of
    the features. The more weights share an output, the smaller each is, and the smaller the steps that suit it.
    """
    return LEARNING_RATE * min(1.0, math.sqrt(MAX_FEATURES / num_features))


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Adam:
    """Adam in one fused step."""
    return torch.optim.Adam(parameters, lr=learning_rate, betas=BETAS, fused=True)


@dataclass
class Stepper:
    """Takes the steps of one fit.

    Parameters
    ----------
    optimizer
        Any torch optimizer; the learning rates of its groups are those at the start.
    num_steps
        Length of the schedule.
    clip_norm
        Largest norm of the gradient; None does not clip.
    done
        Steps of the schedule that are done.
    pace
        How many steps of the schedule one step counts for.
    rates, parameters
        Learning rates at the start, by group, and all that the optimizer moves.
    """

    optimizer: torch.optim.Optimizer
    num_steps: int
    clip_norm: float | None = None
    done: int = 0
    pace: int = 1
    rates: list[float] = field(init=False)
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        groups = self.optimizer.param_groups
        self.rates = [group["lr"] for group in groups]
        self.parameters = [p for group in groups for p in group["params"]]

    def step(self, gradient: Callable[..., Tensor], *batch: object) -> Tensor:
        """Have ``gradient(*batch)`` put gradients into the parameters, and take a step; return what it returns."""
        factor = 0.5 * (1 + math.cos(math.pi * min(self.done / self.num_steps, 1.0)))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        value = gradient(*batch)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()
        self.done += self.pace
        return value


def snapshot(parameters: Iterable[Tensor]) -> State:
    """A copy of the parameters."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def restore(parameters: Iterable[Tensor], state: State) -> None:
    """Put a copy back."""
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers are finite."""
    return all(bool(torch.isfinite(one).all()) for one in tensors if one is not None)
