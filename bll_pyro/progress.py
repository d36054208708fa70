"""A progress bar, shown if standard error is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bll_pyro.scope import isolated


@contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[int, str], None]]:
    """Yield ``advance(num_done, note)``, which does nothing if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda num_done, note: None
        return
    with isolated():  # its first import draws a random number
        from rich.console import Console
        from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(num_done: int, note: str) -> None:
            bar.update(task, advance=num_done, description=f"{description} {note}")

        yield advance
