"""How far chains are: steps of one stage, also while the chains run in processes of their own.

A chain in this process says so itself. Others count in a small file that all of them have mapped into memory. A thread waits
for them, so that this one, in which callbacks have to run, can read the file ten times a second.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from bll_pyro.observation import Stage

PER_SECOND = 10
DONE, DIVERGED = 0, 1  # columns of the counts
Counter = Callable[[int], None]
"""Called after each transition of a chain, with the number of its divergences so far."""


class Abandoned(Exception):
    """Ends a chain that nobody waits for."""


@dataclass
class Transitions:
    """How many transitions and divergences the stage has been told of."""

    steps: Stage
    num_warmup: int
    told: int = 0

    def tell(self, counts: np.ndarray) -> None:
        """Tell the stage of what is new in the counts of all chains, ``[chains, 2]``."""
        done, num_diverged = counts[:, DONE], int(counts[:, DIVERGED].sum())
        new = int(done.sum()) - self.told
        if new:
            self.told += new
            warming = int((done < self.num_warmup).sum())
            self.steps.advance(
                new, warming_up=warming, sampling=len(done) - warming, divergences=num_diverged
            )

    def count(self, counts: np.ndarray, index: int, num_divergences: int) -> None:
        """Count a transition of a chain in this process."""
        counts[index] = counts[index, DONE] + 1, num_divergences
        self.tell(counts)


class FileCounter:
    """The counter of a chain in another process.

    The row after those of the chains says whether they are abandoned.
    """

    def __init__(self, path: Path, index: int) -> None:
        self.path, self.index = path, index
        self._counts: np.ndarray | None = None

    def __call__(self, num_divergences: int) -> None:
        """Count a transition."""
        if self._counts is None:
            self._counts = np.memmap(self.path, np.int64, "r+").reshape(-1, 2)
        if self._counts[-1].any():
            raise Abandoned
        self._counts[self.index, DIVERGED] = num_divergences
        self._counts[self.index, DONE] += 1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index, "_counts": None}


Chains = Callable[[], Iterator[Any]]
"""Runs chains, and gives the result of each as it comes."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Chains whose transitions are counted.

    Parameters
    ----------
    counters
        What each chain calls; None where nobody watches.
    follow
        Runs them, and calls the second argument with the result of each.
    """

    counters: Sequence[Counter | None]
    follow: Callable[[Chains, Callable[[Any], None]], None]


@contextmanager
def counted(steps: Stage, num_chains: int, num_warmup: int, in_processes: bool) -> Iterator[Counted]:
    """Count the transitions of the chains that run in the block."""
    if not steps.observed:
        yield Counted([None] * num_chains, take_each)
    elif not in_processes:
        count, counts = Transitions(steps, num_warmup).count, np.zeros((num_chains, 2), np.int64)
        yield Counted([partial(count, counts, index) for index in range(num_chains)], take_each)
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "counts"
            np.zeros((num_chains + 1, 2), np.int64).tofile(path)
            counters = [FileCounter(path, index) for index in range(num_chains)]
            yield Counted(counters, partial(watch_each, Transitions(steps, num_warmup), path))


def take_each(chains: Chains, take: Callable[[Any], None]) -> None:
    """Run chains, and take the result of each."""
    for result in chains():
        take(result)


def watch_each(told: Transitions, path: Path, chains: Chains, take: Callable[[Any], None]) -> None:
    """The same, for which a thread waits, while this one tells how far they are, ten times a second."""
    results: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def wait() -> None:
        try:
            take_each(chains, lambda result: results.put(("result", result)))
            results.put(("end", None))
        except BaseException as error:  # raised where they are waited for
            results.put(("error", error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, value = results.get(timeout=1 / PER_SECOND)
            except Empty:
                told.tell(counts_in(path))
                continue
            if kind == "error":
                raise value
            if kind == "end":
                break
            take(value)
        told.tell(counts_in(path))
    finally:
        # chains that still run, since a callback failed or the user interrupted, see it and end
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        thread.join()


def counts_in(path: Path) -> np.ndarray:
    """The counts of the chains in a file, ``[chains, 2]``."""
    return np.fromfile(path, np.int64).reshape(-1, 2)[:-1]
