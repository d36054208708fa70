"""What callbacks get: runs and records; and what they may raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

METHODS = ("on_start", "on_step", "on_end")


class StopTraining(Exception):
    """Raised by a callback: training ends after this step, and the call goes on with what was reached.

    The stages of ``SVI`` can end early: its steps, frozen and joint, its ascent and its rounds on all rows. Others have
    nothing to go on with, and there it ends the call like any other error.
    """


@dataclass(frozen=True, eq=False)
class Run:
    """One call of the library, from start to end, with all that it calls.

    Parameters
    ----------
    name
        The function: ``"fit"``, ``"choose"``, ``"sbc"``, ...
    details
        What it was asked to do, by name: of a fit ``layer``, ``inference`` and ``seed``.
    """

    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Record:
    """A step of a stage.

    Parameters
    ----------
    run
        The call that it belongs to.
    stage
        What is done: ``"SVI"``, ``"joint training"``, ``"features"``, ...; inside of others with their names before it:
        ``"choose/Gaussian/SVI"``.
    step
        Number of the step, from 1. Where a stage runs again in the same run, it counts on.
    total
        Number of the last step, as far as is known now; None where nobody knows.
    metrics
        What was measured, by name: ``elbo`` in nats as in ``fit.trace.elbo``, ``nll`` of validation data in nats a row,
        ``learning_rate``, ``rows_per_second``, ... Not every step has every metric.
    seconds
        Since the start of the run.
    """

    run: Run
    stage: str
    step: int
    total: int | None
    metrics: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        counted = f"{self.step:,}" if self.total is None else f"{self.step:,}/{self.total:,}"
        return ", ".join(
            [f"{self.stage} {counted}", *(f"{name} {value:.4g}" for name, value in self.metrics.items())]
        )


@dataclass(frozen=True, eq=False)
class Listener:
    """The methods of a callback; those that it lacks do nothing."""

    on_start: Callable[[Run], object] = lambda run: None
    on_step: Callable[[Record], object] = lambda record: None
    on_end: Callable[[Run, BaseException | None], object] = lambda run, error: None


def listener(callback: object) -> Listener:
    """What a callback, an object with some of the three methods or a function of a record, does."""
    found = {name: getattr(callback, name) for name in METHODS if callable(getattr(callback, name, None))}
    if found and not isinstance(callback, type):
        return Listener(**found)
    if callable(callback) and not isinstance(callback, type):
        return Listener(on_step=callback)
    raise TypeError(
        f"callbacks: expected functions of a record, or objects with some of {', '.join(METHODS)}, got {callback!r}; loggers "
        "are made first: bll.loggers.CSV(path)"
    )
