"""What a loop says, and who is told: runs and stages of the present context, and the settings of the caller.

A loop opens a stage and counts its steps, and knows nothing of bars, callbacks and loggers:

    with stage("SVI", total=num_steps) as steps:
        for ...:
            if steps.observed:
                steps.advance(elbo=value)

The outermost stage, or the ``call`` around it, is what is watched as a whole. Where nobody watches, ``steps.observed`` is False
and the ``if`` is all that is paid. The context is that of :mod:`contextvars`: every thread has its own. A stage must not be opened
inside a generator: its caller would go on inside of the stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from bll_pyro.checks import switch
from bll_pyro.observation.records import Listener, Run, listener
from bll_pyro.observation.watching import CURRENT, SILENT, Reporter, Stage, WatchedStage
from bll_pyro.progress import is_wanted


@dataclass(frozen=True)
class Settings:
    """Whether progress is shown (None: on a terminal), and who is told."""

    progress: bool | None = None
    listeners: tuple[Listener, ...] = ()

    def with_these(self, progress: bool | None, callbacks: Iterable[Any]) -> Settings:
        """The same with more callbacks, and with another choice where one is made."""
        if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
            raise TypeError(
                f"callbacks: expected a list of callbacks, got {callbacks!r}; for a single one write callbacks=[...]"
            )
        chosen = self.progress if progress is None else switch(progress, "progress", "observe")
        return Settings(chosen, (*self.listeners, *map(listener, callbacks)))


USUAL = Settings()
SETTINGS: ContextVar[Settings] = ContextVar("bll_pyro observe", default=USUAL)


@contextmanager
def observe(*, progress: bool | None = None, callbacks: Iterable[Any] = ()) -> Iterator[None]:
    """Say for all calls in a block whether they show a progress bar, and which callbacks are told of their steps.

    ``with bll.observe(progress=False): ...`` is quiet, and ``with bll.observe(callbacks=[bll.loggers.CSV("log.csv")]): ...``
    logs every call in the block. Blocks inside of one another add their callbacks. Other threads are not in the block.

    Parameters
    ----------
    progress
        None (default) leaves it as it is around the block, which is at first: a bar for what takes more than two seconds,
        if standard error is a terminal, or in a notebook that has ``ipywidgets``. False shows none. True shows one in any
        case; where there is no terminal lines are printed, one after two seconds and then one every ten.
    callbacks
        Functions of a :class:`bll_pyro.Record`, or objects with some of the methods ``on_start(run)``, ``on_step(record)`` and
        ``on_end(run, error)``; see :func:`bll_pyro.fit`.
    """
    token = SETTINGS.set(SETTINGS.get().with_these(progress, callbacks))
    try:
        yield
    finally:
        SETTINGS.reset(token)


@contextmanager
def call(
    name: str, *, progress: bool | None = None, callbacks: Iterable[Any] = (), **details: Any
) -> Iterator[None]:
    """One call of the library: watched as a whole, or, inside of another, a part of that one.

    ``progress`` and ``callbacks`` are those of :func:`observe`, for this call alone, which is then one of its own in any case.
    """
    own = progress is not None or callbacks != ()
    if CURRENT.get() is not None and not own:
        yield
        return
    settings = SETTINGS.get().with_these(progress, callbacks) if own else SETTINGS.get()
    is_shown = is_wanted(settings.progress)
    reporter = Reporter(Run(name, details), settings.listeners) if is_shown or settings.listeners else None
    token = CURRENT.set(reporter or SILENT)
    try:
        if reporter is None:
            yield
        else:
            with reporter.watching(is_shown):
                yield
    finally:
        CURRENT.reset(token)


@contextmanager
def stage(
    name: str, total: int | None = None, *, rows_per_step: float | None = None, num_rows: int | None = None
) -> Iterator[Stage]:
    """A part of the present run with steps; without a run it is one. Parameters as of :class:`WatchedStage`."""
    around = CURRENT.get()
    if around is None:
        with call(name), stage(name, total, rows_per_step=rows_per_step, num_rows=num_rows) as made:
            yield made
        return
    if not isinstance(around, Reporter | WatchedStage):
        yield SILENT
        return
    reporter, parent = (around, None) if isinstance(around, Reporter) else (around.reporter, around)
    made = WatchedStage(reporter, parent, name, total, rows_per_step, num_rows)
    reporter.stages.append(made)
    token = CURRENT.set(made)
    try:
        yield made
    finally:
        CURRENT.reset(token)
        reporter.stages.remove(made)


def collected[Part: Sequence[Any]](name: str, num_rows: int, parts: Iterable[Part]) -> list[Part]:
    """Parts ``(rows, ...)`` of N rows in a list, each a step of a stage when it comes."""
    found = []
    with stage(name, num_rows, rows_per_step=1) as done:
        for part in parts:
            found.append(part)
            done.advance(len(part[0]))
    return found


@contextmanager
def unobserved() -> Iterator[None]:
    """Run a block of which nobody is told."""
    token = CURRENT.set(SILENT)
    try:
        yield
    finally:
        CURRENT.reset(token)
