"""The training loop of every stochastic fit: on frozen features, and with the backbone trained along.

What is trained says how a pass over the rows goes, what one step does, and what its state is (:class:`Training`). The loop
steps, ends early where the ELBO has stopped rising or validation data say so, and keeps the last state at which the loss was
finite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bll_pyro.inference.base import Trace
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.nonfinite import NUM_PASSES, Attempt, explain_nonfinite
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.inference.svi.plateau import PACE, Plateau
from bll_pyro.inference.svi.schedule import State, Stepper, adam, all_finite, restore, snapshot


class Training(ABC):
    """What is trained."""

    objective: Objective

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
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
    def state(self) -> State:
        """A copy of everything that a step changes."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Put a copy back."""

    @abstractmethod
    def end_pass(self, elbo: Tensor) -> float | None:
        """What follows a pass: the negative log predictive density of validation data, nats a row, where there are any.

        ``elbo`` is the last estimate.
        """


class FeatureTraining(Training):
    """Training of a guide on frozen features."""

    def __init__(
        self,
        objective: Objective,
        rows: DesignRows,
        batch_size: int,
        learning_rate: float,
        random: torch.Generator,
    ) -> None:
        self.objective, self.rows, self.batch_size = objective, rows, batch_size
        self.learning_rate, self.random = learning_rate, random
        self.validation: Callable[[], float] | None = None
        if not objective.closed:
            objective.prepare(rows)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return adam(self.objective.parameters, self.learning_rate)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Design matrix and targets."""
        return self.rows.batches(self.batch_size, self.random)

    def gradient(self, *batch: Any) -> Tensor:
        """Of the objective."""
        return self.objective.gradient(batch[0], batch[1], self.random)

    def attempt(self, *batch: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """The design matrix stands for the features."""
        return self.gradient(*batch), batch[0], self.objective.pyro_arguments(*batch)

    def state(self) -> State:
        """The parameters."""
        return snapshot(self.objective.parameters)

    def restore(self, state: State) -> None:
        """Put parameters back."""
        restore(self.objective.parameters, state)

    def end_pass(self, elbo: Tensor) -> float | None:
        """The loss of validation data."""
        return None if self.validation is None else self.validation()


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
        loss = training.end_pass(history[-1])
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
    elif plateau is not None and trace.converged:  # a fit that was cut short has its own message already
        trace.converged = not plateau.can_tell
        trace.messages.append(plateau.verdict())
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
