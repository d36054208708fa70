"""What is done with blocks of rows, each whole or not at all: the actor of Ray Data, and what it is given."""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.distributed.on_ray.columns import RowBlock, RowColumns
from bll_pyro.distributed.on_ray.left_out import batches_left_out
from bll_pyro.distributed.on_ray.watchdog import Watchdog
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.shards.ids import Ids, order_of_ids, plain_id, taken
from bll_pyro.shards.parts import RECORD, WrittenPart
from bll_pyro.shards.place import Place

PARTS_IN_MEMORY = 64  # whose ids a worker keeps


class Work(ABC):
    """What is computed of rows, and how the results of a block are written as a part.

    It goes to the actors by pickle, where :meth:`open` is called once.
    """

    place: Place
    key: str

    @abstractmethod
    def open(self) -> None:
        """Make ready what computes."""

    @abstractmethod
    def compute(self, inputs: Any, ids: Sequence[int | str]) -> Any:
        """The results of a batch."""

    @abstractmethod
    def write(self, part: str, ids: Ids, results: Sequence[Any], targets: Tensor | None) -> None:
        """Write the results of all batches of a block under a name, with a record, in place of what is there."""

    @abstractmethod
    def read_ids(self, part: WrittenPart) -> Ids:
        """Ids of a part that was written."""


@dataclass(frozen=True)
class Assignment:
    """Everything that an actor needs to know.

    Parameters
    ----------
    work, columns, workers
        What to do, with what, and how.
    finished
        Parts that were there when the call began.
    left_out
        Ids of rows that earlier calls left out.
    """

    work: Work
    columns: RowColumns
    workers: Workers
    finished: tuple[WrittenPart, ...]
    left_out: tuple[int | str, ...]


class BlockWorker:
    """The actor of :meth:`ray.data.Dataset.map_batches`; gives one row for each block.

    The columns of this row are ``num_rows``, ``part``, the name of the part that has the rows (empty for none), and ``error``,
    which is empty, or a pickled exception.
    """

    def __init__(self, reference: list[Any]) -> None:
        import ray

        given: Assignment = ray.get(reference[0])
        self.given, self.work = given, given.work
        self.done = DoneRows(given)
        torch.set_num_threads(max(int(given.workers.num_cpus), 1))
        self.work.open()
        self.watchdog = Watchdog(str(self.work.place), given.workers.timeout)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        num_rows = len(next(iter(block.values()), ()))
        try:
            part, error = self._done(block) if num_rows else "", b""
        except (ValueError, TypeError, OSError, RuntimeError) as problem:
            part, error = "", pickled(problem)
        return {"num_rows": [num_rows], "part": [part], "error": [error]}

    def _done(self, block: RowBlock) -> str:
        """Compute and write what is missing of a block."""
        self.given.columns.check(block)
        ids = self.given.columns.ids_of(block)
        order = order_of_ids(ids)
        index = np.arange(len(ids)) if order is None else order.numpy()
        if self._is_finished(name := part_name(taken(ids, torch.from_numpy(index)))):
            return name
        index = index[~self.done.among(np.asarray(ids)[index])]
        if not len(index):
            return ""
        own = taken(ids, torch.from_numpy(index))
        if self._is_finished(name := part_name(own)):
            return name
        return self._computed(block, index, own, name)

    def _computed(self, block: RowBlock, index: np.ndarray, ids: Ids, name: str) -> str:
        columns, work, workers = self.given.columns, self.work, self.given.workers
        left_out = batches_left_out(work.place, name, workers.retries)
        results, kept = [], []
        for start in range(0, len(index), workers.batch_size):
            if str(start) in left_out:
                continue
            numbers = np.arange(start, min(start + workers.batch_size, len(index)))
            named = [plain_id(each) for each in np.asarray(ids)[numbers]]
            with self.watchdog.watching(name, str(start), named):
                results.append(work.compute(columns.inputs_of(block, index[numbers]), named))
            kept.append(numbers)
        if not kept:
            return ""
        own = np.concatenate(kept)
        with_results = taken(ids, torch.from_numpy(own))
        work.write(name, with_results, results, columns.targets_of(block, index[own], with_results))
        return name

    def _is_finished(self, part: str) -> bool:
        """Whether a part is written, in this call or before; its record comes last."""
        return self.work.place.size(part + RECORD) is not None


class DoneRows:
    """Which rows need no work: those of parts that are there, in whatever blocks they came then, and those left out."""

    def __init__(self, given: Assignment) -> None:
        kind = object if any(isinstance(part.first_id, str) for part in given.finished) else np.int64
        self._parts = given.finished
        self._first = np.array([part.first_id for part in given.finished], dtype=kind)
        self._last = np.array([part.last_id for part in given.finished], dtype=kind)
        self._left_out = np.array(given.left_out, dtype=object if kind is object else None)
        self._read = lru_cache(PARTS_IN_MEMORY)(lambda k: np.asarray(given.work.read_ids(given.finished[k])))

    def among(self, ids: np.ndarray) -> np.ndarray:
        """Whether each of some ids, in order, is done ``[n]``."""
        found = np.isin(ids, self._left_out) if len(self._left_out) else np.zeros(len(ids), dtype=bool)
        if not self._parts:
            return found
        if (ids.dtype == object) != (self._first.dtype == object):
            raise ValueError(
                f"rows: expected ids of the kind that the folder has, such as {self._parts[0].first_id!r}, got "
                f"{plain_id(ids[0])!r}; go on with the same column, or write to another folder"
            )
        near = np.flatnonzero((self._first <= ids[-1]) & (self._last >= ids[0]))
        for k in near.tolist():
            part = self._parts[k]
            if part.consecutive:
                found |= (ids >= part.first_id) & (ids <= part.last_id)
            else:
                found |= np.isin(ids, self._read(k))
        return found


def part_name(ids: Ids) -> str:
    """The name of a part, from the ids of its rows in order: the same rows always get the same one."""
    array = np.asarray(ids)
    content = "\0".join(array).encode() if array.dtype == object else array.astype("<i8").tobytes()
    return f"part-{hashlib.sha256(content).hexdigest()[:20]}"


def pickled(problem: Exception) -> bytes:
    """An exception as bytes; of one that cannot go to another process its message."""
    try:
        return pickle.dumps(problem)
    except Exception:  # whatever an exception of a network holds
        return pickle.dumps(RuntimeError(f"{type(problem).__name__}: {problem}"))
