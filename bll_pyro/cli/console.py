"""What a command prints: results on standard output, everything else on standard error.

Results are text, or one JSON document with ``--json``. What goes on is said only where a person looks on: not where
standard error is a pipe or a file, and not with ``--quiet``. Warnings and errors are always said. Colours are for terminals
without ``NO_COLOR`` (no-color.org).
"""

from __future__ import annotations

import json as json_format
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

RED, YELLOW, END = "\033[31m", "\033[33m", "\033[0m"


@dataclass
class Console:
    """The two streams of one command.

    Parameters
    ----------
    name
        What messages begin with: ``bll fit``.
    json
        Print results as JSON.
    quiet
        Say nothing of what goes on.
    listeners
        Functions that are told of every message, such as the log of a run.
    """

    name: str
    json: bool = False
    quiet: bool = False
    listeners: list[Callable[[str], object]] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In the block, warnings are messages of the command, and a quiet one shows no progress."""

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            self.warning(str(message))

        with warnings.catch_warnings(), _without_progress() if self.quiet else nullcontext():
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = show
            yield

    def result(self, text: str, data: Any) -> None:
        """The result of a command: ``text`` for people, ``data`` (plain data) for machines."""
        self._tell(text)
        if self.json:
            text = json_format.dumps(data, indent=2, allow_nan=False)
        print(text, flush=True)

    def status(self, text: str) -> None:
        """What goes on now."""
        self._tell(text)
        if not self.quiet and sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        """What the user should know, though the work goes on."""
        self._say("warning", text, YELLOW)

    def error(self, text: str, kind: str = "error") -> None:
        """Why the work has ended."""
        self._say(kind, text, RED)

    def _say(self, kind: str, text: str, colour: str) -> None:
        self._tell(f"{kind}: {text}" if kind else text)
        label = f"{kind}: " if kind else ""
        if label and has_colours():
            label = f"{colour}{label}{END}"
        print(f"{self.name}: {label}{text}", file=sys.stderr, flush=True)

    def _tell(self, text: str) -> None:
        for listener in self.listeners:
            listener(text)


def _without_progress() -> AbstractContextManager[None]:
    from bll_pyro.observation import observe  # loads torch, which the parent of a service does without

    return observe(progress=False)


def has_colours() -> bool:
    """Whether standard error is a terminal of a user who wants colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
