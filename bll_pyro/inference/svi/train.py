"""The training loop of every stochastic fit: on frozen features, and with the backbone trained along.

What is trained says how a pass over the rows goes, what one step does, and what its state is (:class:`Training`). The loop
takes steps of Adam whose rates fall to zero along half a cosine (:class:`Stepper`), ends early where the ELBO has stopped
rising (:class:`Plateau`) or validation data say so, and keeps the last state at which the loss was finite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.inference.base import Trace
from bll_pyro.inference.svi.nonfinite import NUM_PASSES, Attempt, explain_nonfinite
from bll_pyro.inference.svi.objective import Objective, StateCopy, all_finite
from bll_pyro.optimizers import Adam, Optimizer

BETAS = (0.9, 0.99)  # decay of Adam's running averages: a fit has some hundred steps
NUM_WINDOWS = 15  # number of windows in a whole schedule
MIN_WINDOW = 50  # fewest steps in a window
LAST_LOOK = 0.6  # share of the schedule after which the step size is too small for the test
TOLERANCE = 0.01  # rise of the ELBO, in nats, that counts as none
PACE = 4  # factor by which the rest of the schedule is shortened


def adam(parameters: Iterable[Tensor], learning_rate: float) -> Adam:
    """Adam in one fused step."""
    return Adam(parameters, learning_rate, BETAS)


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
        factor = 0.5 * (1 + math.cos(math.pi * min(self.done / self.num_steps, 1.0)))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        value = gradient(*batch)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()
        self.done += self.pace
        return value


@dataclass
class Plateau:
    """Tests whether the ELBO has stopped rising, once per window of steps (one synchronisation with the device each).

    With ``m_1, m_2`` the means of the ELBO over two successive windows of w steps, and ``v`` the variance of one estimate
    from successive differences (von Neumann 1941), which a trend does not inflate, it has stopped where

        ``m_2 - m_1 <= max(sqrt(2 v / w), 0.01 nats)``.

    The test runs only while the step size is large: as the step size falls to zero, the ELBO stops rising at any point.

    Parameters
    ----------
    num_steps
        Number of steps in the whole schedule.
    step
        Number of steps after which the ELBO was found to have stopped rising; None before.
    rise, noise
        Rise between the windows of the last test, and its standard error, in nats.
    """

    num_steps: int
    step: int | None = None
    rise: float = float("nan")
    noise: float = float("nan")
    window: int = field(init=False)  # number of steps in a window

    def __post_init__(self) -> None:
        self.window = max(MIN_WINDOW, self.num_steps // NUM_WINDOWS)

    @property
    def can_tell(self) -> bool:
        """Whether two windows fit into the part of the schedule with a large step size."""
        return 2 * self.window <= LAST_LOOK * self.num_steps

    def look(self, history: Sequence[Tensor]) -> bool:
        """Test the ELBO of all steps so far; True once it has stopped rising."""
        done, width = len(history), 2 * self.window
        due = done % self.window == 0 and width <= done <= LAST_LOOK * self.num_steps
        if self.step is None and due:
            values = torch.stack(list(history[-width:])).double()
            means = values.view(2, -1).mean(-1)
            variance = values.diff().square().mean() / 2
            found = torch.stack([means[1] - means[0], (2 * variance / self.window).sqrt()])
            self.rise, self.noise = found.tolist()
            if self.rise <= max(self.noise, TOLERANCE):
                self.step = done
        return self.step is not None

    def verdict(self) -> str:
        """What is to be said of the fit; empty if the ELBO has stopped rising."""
        if self.step is not None:
            return ""
        if not self.can_tell:
            return f"{self.num_steps} steps are too few to tell whether the ELBO has stopped rising"
        return (
            f"the ELBO was still rising, by {self.rise:.3g} nats in {self.window} steps (standard error {self.noise:.2g}), when "
            f"the step size began to fall; use more than these {self.num_steps} steps: SVI(num_epochs=...)"
        )


class Training(ABC):
    """What is trained."""

    objective: Objective
    validation_loss: Callable[[], float] | None = (
        None  # negative log predictive density of validation data, nats a row
    )

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


def train(
    training: Training,
    stepper: Stepper,
    num_epochs: int,
    patience: int,
    plateau: Plateau | None,
    adapts: bool,
) -> Trace:
    """Train for up to ``num_epochs`` passes.

    Parameters
    ----------
    training, stepper
        What is trained, and what takes the steps.
    num_epochs, patience
        Most passes, and passes without a better validation loss after which training ends.
    plateau
        Watches whether the ELBO has stopped rising; None does not watch.
    adapts
        Whether the rest of the schedule goes faster once it has.
    """
    history: list[Tensor] = []
    trace = Trace()
    before = latest = best = training.state()
    best_loss, waited = math.inf, 0
    for epoch in range(num_epochs):
        first = len(history)
        for batch in training.batches():
            history.append(stepper.step(training.gradient, *batch))
            if plateau is not None and plateau.look(history) and adapts:
                stepper.pace = PACE
            if stepper.pace > 1 and stepper.done >= stepper.num_steps:
                break
        if not all_finite([history[-1], *stepper.parameters]):
            # the state after a pass is good only if the next loss, the first one from there, is finite
            training.restore(latest if all_finite([history[first]]) else before)
            trace.stop(
                f"epoch {epoch + 1}: the loss is not finite, and the state before that epoch was kept; "
                f"{what_went_wrong(training)}"
            )
            break
        before, latest = latest, training.state()
        loss = None if training.validation_loss is None else training.validation_loss()
        if loss is not None:
            trace.validation.append(loss)
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = latest, loss
            if waited >= patience:
                break
        if stepper.pace > 1 and stepper.done >= stepper.num_steps:
            break
    if plateau is not None and plateau.step is not None:
        trace.statistics["plateau"] = plateau.step
    elif plateau is not None and trace.converged and waited < patience:
        # a fit that was cut short has its own message already, and one that validation data ended has not failed
        trace.converged = not plateau.can_tell
        (trace.messages if plateau.can_tell else trace.notes).append(plateau.verdict())
    if trace.validation:
        training.restore(best)
    trace.elbo = torch.stack(history).cpu()
    return trace


def what_went_wrong(training: Training) -> str:
    """Take some passes from the present state, say where they end, and go back to it."""
    state = training.state()

    def attempts() -> Iterator[Attempt]:
        for _ in range(NUM_PASSES):
            yield from (partial(training.attempt, *batch) for batch in training.batches())

    objective = training.objective
    cause = explain_nonfinite(objective.guide, objective.model, training.optimizer(), attempts())
    training.restore(state)
    return cause
