"""What a training loop needs: something that is trained, and steps.

What is trained says how a pass over the rows goes, what one step does, and what its state is (:class:`Training`). Steps are
those of Adam, whose rates fall to zero along half a cosine (:class:`Stepper`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bll_pyro.inference.svi.objective import Objective, StateCopy
from bll_pyro.optimizers import Adam, Optimizer

BETAS = (0.9, 0.99)  # decay of Adam's running averages: a fit has some hundred steps


def adam(parameters: Iterable[Tensor], learning_rate: float) -> Adam:
    """Adam in one fused step."""
    return Adam(parameters, learning_rate, BETAS)


def half_cosine(share: float) -> float:
    """What falls from 1 to 0 as a share of the schedule goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass
class Stepper:
    """Takes the steps of one fit.

    Parameters
    ----------
    optimizer
        Of this package or of torch; the learning rates of its groups are those at the start.
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

    optimizer: Optimizer
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
        self.begin()
        value = gradient(*batch)
        self.move()
        self.done += self.pace
        return value

    def begin(self) -> None:
        """Set the rates of the next step."""
        factor = half_cosine(self.done / self.num_steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def move(self) -> None:
        """Move the parameters along their gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()

    @property
    def exhausted(self) -> bool:
        """Whether a schedule that goes faster than one step a step is at its end."""
        return self.pace > 1 and self.done >= self.num_steps

    def state(self) -> dict[str, Any]:
        """What the next step depends on, but for the parameters."""
        return {"optimizer": self.optimizer.state_dict(), "done": self.done, "pace": self.pace}

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.pace = state["done"], state["pace"]


class Training(ABC):
    """What is trained."""

    name: ClassVar[str]  # of its part of a checkpoint
    title: ClassVar[str]  # what it is called where its progress is shown
    objective: Objective
    random: torch.Generator  # what steps draw from
    validation_loss: Callable[[], float] | None = (
        None  # negative log predictive density of validation data, nats a row
    )
    warms_up: bool = False  # whether patience has to wait: what should improve is not trained yet

    @property
    @abstractmethod
    def log_scale(self) -> float:
        """What the ELBO, in nats, is less in the user's units."""

    @abstractmethod
    def optimizer(self) -> Optimizer:
        """A new optimizer of all parameters, with the learning rates of the start."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[Any, ...]]:
        """One pass over the rows in random order."""

    @abstractmethod
    def gradient(self, *batch: Any) -> Tensor:
        """Put the gradient of ``-ELBO / N`` of a batch into the parameters; return the ELBO estimate in nats."""

    @abstractmethod
    def attempt(self, *batch: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """As :meth:`gradient`, and return the estimate, the features, and what the Pyro program takes for them."""

    @abstractmethod
    def state(self) -> StateCopy:
        """A copy of everything that a step changes."""

    @abstractmethod
    def restore(self, state: StateCopy) -> None:
        """Put a copy back."""

    def generators(self) -> list[torch.Generator]:
        """What the order of the rows, and the draws of a pass, come from."""
        return [self.random]

    def extra(self) -> dict[str, Any]:
        """What a later step depends on, or the posterior, and no step needs to put back: tensors and plain data."""
        return {"learned": self.objective.learned}

    def put_extra(self, extra: dict[str, Any]) -> None:
        """Put it back."""
        like = self.objective.parameters[0]
        self.objective.learned = {name: value.to(like.device) for name, value in extra["learned"].items()}


def extra_states(module: nn.Module) -> dict[str, Any]:
    """What modules keep beside parameters and buffers, by name: ``get_extra_state`` of those that have it."""
    plain = nn.Module.get_extra_state
    named = module.named_modules()
    return {name: each.get_extra_state() for name, each in named if type(each).get_extra_state is not plain}
