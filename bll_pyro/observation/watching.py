"""A run that is watched: its stages, what is read of them and when, and who is told."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from time import perf_counter
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bll_pyro.observation.records import Listener, Record, Run, StopTraining
from bll_pyro.progress import DISPLAY, Line
from bll_pyro.scope import isolated

INTERVAL = 0.1  # seconds between two transfers from a device
Number = Tensor | float


class Stage:
    """A part of a run with steps, which nobody watches."""

    observed: ClassVar[bool] = False

    def advance(self, num_steps: int = 1, **metrics: Number) -> None:
        """Say that steps are done, and what was measured: numbers, or tensors of one number on any device."""

    def skip(self, num_steps: int) -> None:
        """Say that the first steps were done earlier, in another process."""

    def expect(self, total: int) -> None:
        """Say how many steps there will be, where that was not known at the start, or has changed."""


SILENT = Stage()
CURRENT: ContextVar[Stage | Reporter | None] = ContextVar("bll_pyro stage", default=None)


class WatchedStage(Stage):
    """A part of a run with steps.

    Parameters
    ----------
    reporter, parent
        The run, and the stage that this one is in.
    name, total
        What it is, and its number of steps.
    rows_per_step, num_rows
        Rows that a step goes through, for their rate, and rows of the data; None where it is not about rows.
    """

    observed: ClassVar[bool] = True

    def __init__(
        self,
        reporter: Reporter,
        parent: WatchedStage | None,
        name: str,
        total: int | None,
        rows_per_step: float | None,
        num_rows: int | None,
    ) -> None:
        self.reporter, self.parent, self.name, self.total = reporter, parent, name, total
        self.rows_per_step, self.num_rows = rows_per_step, num_rows
        self.path: str = name if parent is None else f"{parent.path}/{name}"
        self.before = reporter.steps[self.path]  # steps of an earlier stage of this name
        self.done, self.skipped, self.began = 0, 0, perf_counter()
        self.latest: dict[str, Number] = {}
        self.shown: dict[str, float] = {}  # of the latest, what has been read

    def advance(self, num_steps: int = 1, **metrics: Number) -> None:
        """Say that steps are done, and what was measured."""
        self.done += num_steps
        self.reporter.steps[self.path] = self.before + self.done
        self.latest.update(metrics)
        self.reporter.note(self, metrics)

    def skip(self, num_steps: int) -> None:
        """Say that the first steps were done earlier."""
        self.done += num_steps
        self.skipped += num_steps
        self.reporter.steps[self.path] = self.before + self.done

    def expect(self, total: int) -> None:
        """Say how many steps there will be."""
        self.total = total

    def rate(self, now: float) -> dict[str, float]:
        """Rows a second."""
        num_here = self.done - self.skipped
        if self.rows_per_step is None or not num_here or now <= self.began:
            return {}
        return {"rows_per_second": self.rows_per_step * num_here / (now - self.began)}

    def line(self) -> Line:
        """What is shown of it."""
        depth, parent, now = 0, self.parent, perf_counter()
        while parent is not None:
            depth, parent = depth + 1, parent.parent
        metrics = {**self.shown, **self.rate(now)}
        return Line(
            self.name, depth, self.done, self.total, now - self.began, metrics, self.num_rows, self.skipped
        )


class Step(NamedTuple):
    """A step whose metrics have not been read."""

    stage: WatchedStage
    number: int
    total: int | None
    when: float
    rate: dict[str, float]
    metrics: Mapping[str, Number]


class Reporter:
    """Tells callbacks and display of a run.

    What lies on the CPU is read at once. A transfer from a device would make it wait for the loop, so steps with such
    metrics are collected, and up to ten times a second all are read together. The display alone wants the latest, as often.
    """

    def __init__(self, run: Run, listeners: Sequence[Listener]) -> None:
        self.run, self.listeners = run, listeners
        self.began = self.read = perf_counter()
        self.stages: list[WatchedStage] = []  # those that go on, in the order in which they began
        self.steps: defaultdict[str, int] = defaultdict(int)  # of all stages of a name
        self._lock = threading.RLock()
        self._waiting: list[Step] = []
        self._failure: BaseException | None = None  # of a callback

    @contextmanager
    def watching(self, is_shown: bool) -> Iterator[None]:
        """Watch what the block does, and tell every callback of its end, also if it fails."""
        with ExitStack() as after:
            for each in self.listeners:
                each.on_start(self.run)
                after.push(partial(self._end, each))
            self.began = perf_counter()
            after.push(self._finish)
            if is_shown:
                after.enter_context(DISPLAY.showing(self.lines))
            yield

    def lines(self) -> list[Line]:
        """What is shown of the run: its stages, or itself between them."""
        found = [stage.line() for stage in tuple(self.stages)]
        return found or [Line(self.run.name, 0, 0, None, perf_counter() - self.began, {})]

    def note(self, stage: WatchedStage, metrics: Mapping[str, Number]) -> None:
        """Take a step down, and look at what was taken down if it is time."""
        with self._lock:
            if self._failure is not None:  # somebody took it for a failure of the loop
                raise self._failure
            now = perf_counter()
            is_due = now - self.read >= INTERVAL
            if self.listeners:
                total = None if stage.total is None else stage.before + stage.total
                number = stage.before + stage.done
                self._waiting.append(Step(stage, number, total, now, stage.rate(now), metrics))
            if is_due:
                self.read = now
                (stage.shown,) = numbers([stage.latest])
            if self._waiting and (is_due or not any(map(is_far, metrics.values()))):
                self._tell()

    def _tell(self) -> None:
        """Read what is waiting, and tell every callback of it."""
        waiting, self._waiting = self._waiting, []
        stopped: StopTraining | None = None
        token = CURRENT.set(SILENT)  # what callbacks call is no part of the run,
        try:
            for step, metrics in zip(waiting, numbers([step.metrics for step in waiting]), strict=True):
                record = Record(
                    self.run,
                    step.stage.path,
                    step.number,
                    step.total,
                    metrics | step.rate,
                    step.when - self.began,
                )
                with isolated():  # and what they draw changes no number of it
                    for each in self.listeners:
                        try:
                            each.on_step(record)
                        except StopTraining as stop:
                            stopped = stop
        except BaseException as error:
            self._failure = error
            raise
        finally:
            CURRENT.reset(token)
        if stopped is not None:
            raise stopped

    def _end(self, each: Listener, kind: object, error: BaseException | None, *_: object) -> None:
        each.on_end(self.run, error)

    def _finish(self, kind: object, error: BaseException | None, *_: object) -> None:
        """Tell of the last steps, when it is too late to stop; or raise what a callback raised, if it got lost."""
        with self._lock:
            if self._failure is None:
                with suppress(StopTraining):
                    self._tell()
            elif error is not self._failure:
                raise self._failure


def is_far(value: Number) -> bool:
    """Whether a number is on a device whose work would have to be waited for."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def numbers(many: Sequence[Mapping[str, Number]]) -> list[dict[str, float]]:
    """Metrics as Python's numbers, in one transfer from each device."""
    groups: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for metrics in many:
        for value in metrics.values():
            if isinstance(value, Tensor):
                groups[value.device, value.dtype].append(value.detach().reshape(()))
    found = {place: iter(torch.stack(group).tolist()) for place, group in groups.items()}
    return [
        {
            name: float(next(found[value.device, value.dtype])) if isinstance(value, Tensor) else float(value)
            for name, value in metrics.items()
        }
        for metrics in many
    ]
