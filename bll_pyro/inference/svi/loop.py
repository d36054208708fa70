"""The training loop of every stochastic fit: on frozen features, and with the backbone trained along.

It ends early where the ELBO has stopped rising (:class:`Plateau`) or validation data say so, and keeps the last state at which
the loss was finite. All that the next step depends on is in :meth:`Loop.state`, so that the loop goes on in another process
where an earlier one was killed: in the same order of rows, with the same draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bll_pyro.checkpoint.folder import Part, part
from bll_pyro.inference.base import Trace
from bll_pyro.inference.svi.nonfinite import NUM_PASSES, Attempt, explain_nonfinite
from bll_pyro.inference.svi.objective import all_finite
from bll_pyro.inference.svi.plateau import Plateau
from bll_pyro.inference.svi.train import Stepper, Training
from bll_pyro.observation import Stage, StopTraining, stage
from bll_pyro.scope import random_state, set_random_state

PACE = 4  # factor by which the rest of the schedule is shortened
PLAIN = ("best_loss", "waited", "epoch", "num_done", "ended")  # attributes of a loop that are numbers


class Loop:
    """Passes over the rows, one after the other, from any step on; the parameters are those of :func:`train`.

    Attributes
    ----------
    epoch, num_done
        Passes that are done, and steps of the present pass that are.
    history
        The ELBO of all steps.
    before, latest, best
        States after the last pass but one, after the last, and at the lowest validation loss.
    ended, stopped
        Whether this was the last pass, and whether a callback has made it the last.
    steps
        The stage that is told of the steps.
    """

    def __init__(
        self,
        training: Training,
        stepper: Stepper,
        num_epochs: int,
        patience: int,
        plateau: Plateau | None,
        adapts: bool,
    ) -> None:
        self.training, self.stepper, self.plateau, self.adapts = training, stepper, plateau, adapts
        self.num_epochs, self.patience = num_epochs, patience
        self.trace, self.history = Trace(), list[Tensor]()
        self.before = self.latest = self.best = training.state()
        self.best_loss, self.waited = math.inf, 0
        self.epoch, self.num_done, self.ended, self.stopped = 0, 0, False, False
        self.steps, self.log_scale = Stage(), 0.0
        self._began = time.monotonic()
        self.earlier = 0.0  # seconds in other processes
        self._first: list[Tensor] = []  # states of the generators at the start of the present pass
        # states of the global generators, and of that of the steps, with which to go on
        self._drawn: tuple[dict[str, Any], Tensor] | None = None

    def take_pass(self, keeper: Part | None) -> None:
        """Take the steps of a pass, or those that an earlier process has left of it."""
        if not self.num_done:
            self._first = [each.get_state() for each in self.training.generators()]
        batches = self.training.batches()
        for _ in range(
            self.num_done
        ):  # done by an earlier process: loaded again, so that all draws are the same
            next(batches, None)
        self._go_on_drawing()
        while not self.stepper.exhausted and (batch := next(batches, None)) is not None:
            self.history.append(self.stepper.step(self.training.gradient, *batch))
            self.num_done += 1
            if self.plateau is not None and self.plateau.look(self.history) and self.adapts:
                self.stepper.pace = PACE
            if self.steps.observed:
                self._tell_of_step()
            if keeper is not None:
                keeper.offer(self.state)
            if self.stopped:
                break

    def judge_pass(self) -> None:
        """See whether the pass ended well, and whether it was the last."""
        training, trace = self.training, self.trace
        if not all_finite([self.history[-1], *self.stepper.parameters]):
            # the state after a pass is good only if the next loss, the first one from there, is finite
            good = all_finite([self.history[-self.num_done]])
            training.restore(self.latest if good else self.before)
            trace.stop(
                f"epoch {self.epoch + 1}: the loss is not finite, and the state before that epoch was kept; "
                f"{what_went_wrong(training)}"
            )
            self.ended = True
            return
        self.before, self.latest = self.latest, training.state()
        loss = None if training.validation_loss is None else training.validation_loss()
        if loss is not None:
            trace.validation.append(loss)
            self.waited = 0 if loss < self.best_loss or training.warms_up else self.waited + 1
            if loss < self.best_loss:
                self.best, self.best_loss = self.latest, loss
            self._tell(0, nll=loss)
        self.epoch, self.num_done = self.epoch + 1, 0
        waited = loss is not None and self.waited >= self.patience
        self.ended = waited or self.stopped or self.stepper.exhausted or self.epoch >= self.num_epochs

    def conclude(self) -> None:
        """Say how it went, and go back to the best state."""
        plateau, trace = self.plateau, self.trace
        if self.stopped:
            trace.end_early(f"{self.training.title} after {len(self.history)} steps")
        if plateau is not None and plateau.step is not None:
            trace.statistics["plateau"] = plateau.step
        elif plateau is not None and trace.converged and self.waited < self.patience:
            # a fit that was cut short has its own message already, and one that validation data ended has not failed
            trace.converged = not plateau.can_tell
            (trace.messages if plateau.can_tell else trace.notes).append(plateau.verdict())
        if trace.validation:
            self.training.restore(self.best)

    def _tell_of_step(self) -> None:
        stepper, (guide, *others) = self.stepper, self.stepper.optimizer.param_groups
        left = math.ceil(max(stepper.num_steps - stepper.done, 0) / stepper.pace)
        self.steps.expect(len(self.history) + left)
        rates = {"learning_rate": guide["lr"]} | (
            {"backbone_learning_rate": others[-1]["lr"]} if others else {}
        )
        self._tell(1, elbo=self.history[-1] - self.log_scale, **rates)

    def _tell(self, num_steps: int, **metrics: Tensor | float) -> None:
        try:
            self.steps.advance(num_steps, **metrics)
        except StopTraining:
            self.stopped = True

    def state(self) -> dict[str, Any] | None:
        """All that the rest depends on, as tensors and plain data; None where the state is not worth keeping."""
        recent = [self.history[-1], self.history[-max(self.num_done, 1)]]
        if not self.ended and not all_finite([*recent, *self.stepper.parameters]):
            return None
        training, trace = self.training, vars(self.trace).items()
        between = not self.num_done or self.ended
        # in a pass that began well nobody goes back to the state before the last pass
        past = self.before if between else self.latest, self.latest, self.best
        return {
            "present": self.latest if between and not self.ended else training.state(),
            "past": None if self.ended else past,
            "extra": training.extra(),
            "stepper": None if self.ended else self.stepper.state(),
            "plain": {name: getattr(self, name) for name in PLAIN},
            "plateau": None if self.plateau is None else vars(self.plateau),
            "trace": {name: value for name, value in trace if name not in ("elbo", "wall_time")},
            "history": torch.stack(self.history),
            "seconds": self.seconds,
            "first": [each.get_state() for each in training.generators()] if between else self._first,
            "drawn": (random_state(), training.random.get_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back, of an earlier process too."""
        training = self.training
        training.restore(state["present"])
        training.put_extra(state["extra"])
        if state["past"] is not None:
            self.before, self.latest, self.best = state["past"]
            self.stepper.restore(state["stepper"])
        for owner, values in (
            (self, state["plain"]),
            (self.trace, state["trace"]),
            (self.plateau, state["plateau"]),
        ):
            for name, value in (values or {}).items():
                setattr(owner, name, value)
        self.history = list(state["history"].to(self.stepper.parameters[0].device).unbind())
        self.earlier, self._first, self._drawn = state["seconds"], state["first"], state["drawn"]
        for each, value in zip(training.generators(), self._first, strict=True):
            each.set_state(value)
        if self.ended:
            self._go_on_drawing()

    def _go_on_drawing(self) -> None:
        """Put the random states of an earlier process back, once."""
        if self._drawn is not None:
            set_random_state(self._drawn[0])
            self.training.random.set_state(self._drawn[1])
            self._drawn = None

    @property
    def seconds(self) -> float:
        """Seconds since the start, in all processes."""
        return self.earlier + time.monotonic() - self._began


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
    loop, keeper = Loop(training, stepper, num_epochs, patience, plateau, adapts), part(training.name)
    saved = None if keeper is None else keeper.saved()
    if saved is not None:
        loop.restore(saved[0])
    if saved is None or not saved[1]:
        rows_per_step = training.objective.num_rows * num_epochs / stepper.num_steps
        told = stage(
            training.title,
            stepper.num_steps,
            rows_per_step=rows_per_step,
            num_rows=training.objective.num_rows,
        )
        with nullcontext() if keeper is None else keeper.running(), told as loop.steps:
            loop.steps.skip(len(loop.history))
            loop.log_scale = training.log_scale if loop.steps.observed else 0.0
            while not loop.ended:
                loop.take_pass(keeper)
                loop.judge_pass()
                if keeper is not None and not loop.ended:
                    keeper.offer(loop.state)
            loop.conclude()
            if keeper is not None:
                keeper.finish(loop.state())
    loop.trace.elbo, loop.trace.wall_time = torch.stack(loop.history).cpu(), loop.earlier
    return loop.trace


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
