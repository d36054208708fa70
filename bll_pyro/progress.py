"""The progress bar: one display for the process, in which every call that takes more than two seconds has its lines.

It asks for lines ten times a second and is told nothing, so that loops have nothing to do for it. What has ended vanishes
from it, and with the last call it vanishes itself.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bll_pyro.scope import isolated

DELAY = 2.0  # seconds that a call takes before it is shown
PER_SECOND = 10  # looks at the lines in a second
PAUSE = 10.0  # seconds between two printed lines where there is no terminal
WIDTH = 20  # columns of a bar
# What is shown of a metric, if not its name with spaces; those of all rows are divided by their number.
BY_ROW = {"elbo": "ELBO a row", "log_evidence": "log evidence a row", "log_joint": "log joint a row"}
TITLES = {"nll": "NLL", "rows_per_second": "rows/s"}


@dataclass(frozen=True, eq=False)
class Line:
    """A stage as it is shown.

    Parameters
    ----------
    name, depth
        What it is, and in how many others it is.
    done, total
        Steps; the total is None where nobody knows it.
    seconds
        Since it began.
    metrics
        The latest of each.
    num_rows
        Rows of the data, for what is said a row; None says it of all.
    skipped
        How many of the steps were done before these seconds.
    """

    name: str
    depth: int
    done: int
    total: int | None
    seconds: float
    metrics: Mapping[str, float]
    num_rows: int | None = None
    skipped: int = 0

    @property
    def counted(self) -> str:
        """Steps of how many."""
        if self.total is None:
            return f"{self.done:,}" if self.done else ""
        return f"{self.done:,}/{self.total:,}"

    @property
    def described(self) -> str:
        """The metrics in words."""
        return ", ".join(self._worded(name, value) for name, value in self.metrics.items())

    @property
    def time(self) -> str:
        """Time left, or the time that has passed where the total is not known."""
        if self.total is None:
            return clock(self.seconds)
        if self.done == self.skipped:
            return ""
        left = max(self.total - self.done, 0) / (self.done - self.skipped)
        return f"{clock(self.seconds * left)} left"

    def __str__(self) -> str:
        said = [text for text in (self.counted, self.described, self.time) if text]
        return f"{'  ' * self.depth}{self.name}: {', '.join(said)}"

    def _worded(self, name: str, value: float) -> str:
        if name == "rows_per_second":
            return f"{value:,.0f} rows/s" if value >= 10 else f"{value:.2g} rows/s"
        if name in BY_ROW and self.num_rows:
            return f"{BY_ROW[name]} {value / self.num_rows:.4g}"
        return f"{TITLES.get(name, name.replace('_', ' '))} {value:.4g}"


def clock(seconds: float) -> str:
    """``m:ss``, or from an hour on ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_wanted(progress: bool | None) -> bool:
    """Whether a call shows its progress: if asked to, and by default on a terminal or in a notebook that has widgets.

    Never in a process that another one started, whose display would be in the way of that one's.
    """
    if progress is False or multiprocessing.parent_process() is not None:
        return False
    return progress is True or is_drawn()


def is_drawn() -> bool:
    """Whether there is a terminal that moves its cursor, or a notebook that has widgets."""
    if sys.stderr is not None and sys.stderr.isatty():
        return os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None


class Display:
    """The lines of all calls that go on in this process, of several threads too."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: list[Callable[[], list[Line]]] = []  # of the calls that go on
        self._shown: list[Callable[[], list[Line]]] = []  # of those that have taken long enough
        self._live: Any = None

    @contextmanager
    def showing(self, lines: Callable[[], list[Line]]) -> Iterator[None]:
        """Show the lines of a call as long as the block runs, from two seconds on."""
        if not is_drawn():
            with printed(lines):
                yield
            return
        if "rich.style" not in sys.modules:
            with isolated():  # its import draws a random number, that of the rest none, and takes the longest
                import_module("rich.style")
        timer = threading.Timer(DELAY, self._show, (lines,))
        timer.daemon = True
        self._open.append(lines)
        try:
            timer.start()
            yield
        finally:
            timer.cancel()
            self._hide(lines)

    def _show(self, lines: Callable[[], list[Line]]) -> None:
        from rich.console import Console
        from rich.live import Live

        with self._lock:
            if lines not in self._open:  # it has just ended
                return
            self._shown.append(lines)
            if self._live is not None:
                return
            console = Console(stderr=True)
            self._live = Live(
                console=console,
                get_renderable=self._table,
                refresh_per_second=PER_SECOND,
                transient=True,
                # what is printed meanwhile goes above the bar; what does not go to a terminal goes where it went
                redirect_stdout=console.is_terminal and sys.stdout is not None and sys.stdout.isatty(),
                redirect_stderr=console.is_terminal,
            )
            self._live.start(refresh=True)

    def _hide(self, lines: Callable[[], list[Line]]) -> None:
        with self._lock:
            self._open.remove(lines)
            if lines in self._shown:
                self._shown.remove(lines)
            if not self._shown and self._live is not None:
                live, self._live = self._live, None
                live.stop()

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        for number in range(5):
            table.add_column(no_wrap=True, overflow="ellipsis", justify="right" if number == 2 else "left")
        for lines in tuple(self._shown):
            of_call = lines()
            for line in of_call:
                is_moving = line.total is not None or line is of_call[-1]
                bar = ProgressBar(line.total, line.done, width=WIDTH) if is_moving else Text()
                texts = (line.counted, line.described, line.time)
                table.add_row(Text("  " * line.depth + line.name), bar, *map(Text, texts))
        return table

    def after_fork(self) -> None:
        """Forget what the parent shows: its thread is not here, and its locks may be held for ever."""
        live = self._live
        self._lock, self._open, self._shown, self._live = threading.RLock(), [], [], None
        if live is not None:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                setattr(sys, name, getattr(stream, "rich_proxied_file", stream))


@contextmanager
def printed(lines: Callable[[], list[Line]]) -> Iterator[None]:
    """Print the lines of a call on standard error as long as the block runs: after two seconds, and then every ten."""
    ended = threading.Event()

    def write() -> None:
        pause = DELAY
        while not ended.wait(pause):
            pause = PAUSE
            print(*lines(), sep="\n", file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


DISPLAY = Display()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DISPLAY.after_fork)
