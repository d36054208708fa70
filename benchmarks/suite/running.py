"""Fits what has no row yet, row by row, so that a run can be stopped and goes on where it was."""

import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.defaults.methods import code_hash
from benchmarks.suite.budget import FULL, SHORT
from benchmarks.suite.fitting import fit_and_predict, warm_up
from benchmarks.suite.measures import measured
from benchmarks.suite.methods import Method
from benchmarks.suite.peers import CACHE, Job, Worker, failure_of_install, version_of
from benchmarks.suite.splits import VALUES, Split
from benchmarks.suite.store import Row, Rows, id_of
from benchmarks.suite.tasks import NUM_SEEDS, Task


def versions_of(method: Method) -> str | None:
    """What a row is made with: the package, for ours with a hash of its code, and torch, NumPy and Python; None if it is absent."""
    own = version_of(method.package, method.peer)
    if own is None:
        return None
    code = f" {code_hash()}" if method.package == "bll-pyro" else ""
    rest = ", ".join(f"{name} {version_of(name, None)}" for name in ("torch", "numpy"))
    given = f"{method.package} {own}{code}, {rest}, Python {platform.python_version()}"
    return given.replace(f"torch {own}, ", "", 1) if method.package == "torch" else given


class Runner:
    """Fits in this process, or in that of a peer.

    Parameters
    ----------
    rows : Rows
        Where the rows go.
    is_small : bool
        Short fits, and no peer is installed.
    """

    def __init__(self, rows: Rows, *, is_small: bool = False) -> None:
        self.rows, self.is_small = rows, is_small
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}
        self.temporary = Path(tempfile.mkdtemp(prefix="suite-"))
        self.splits = self.temporary if is_small else CACHE / "splits"

    def close(self) -> None:
        """End the processes of the peers, and remove temporary files."""
        for worker in self.workers.values():
            worker.close()
        shutil.rmtree(self.temporary)

    def is_there(self, method: Method) -> bool:
        """Whether the method can be run; the reason is kept where it cannot."""
        failure = None
        if method.peer is not None:
            failure = failure_of_install(method.peer, may_install=not self.is_small)
        if failure is not None:
            self.absent[method.name] = failure
        return failure is None

    def fill(
        self, tasks: Iterable[Task], methods: Iterable[Method], num_seeds: int | None, *, again: bool
    ) -> list[str]:
        """Fit what has no row of its split (``again``: of these versions too); names of tasks whose data are missing."""
        there = [method for method in methods if self.is_there(method)]
        missing: list[str] = []
        for task, seed in in_turn(tasks, num_seeds):
            if task.name in missing:
                continue
            try:
                split, path = task.split(seed, self.splits)
            except FileNotFoundError:
                missing.append(task.name)
                continue
            for method in (method for method in there if task.kind in method.fits):
                versions = versions_of(method) if again else None
                if not self.rows.has(id_of(task.name, method.name, seed), split.hash, versions):
                    self.run(task, method, seed, split, path)
        return missing

    def run(self, task: Task, method: Method, seed: int, split: Split, path: Path) -> Row:
        """Fit once; keep the predictions and the row."""
        name = id_of(task.name, method.name, seed)
        arrays, found = self.fit(method, seed, split, path)
        row: dict[str, Any] = {
            "id": name, "task": task.name, "method": method.name, "seed": seed, "split": split.hash,
            "versions": versions_of(method),
        }  # fmt: skip
        if arrays is not None:
            found |= measured(arrays, split)
            if not np.isfinite(found["nll"]):
                found = {"failure": "its NLL is not finite"}
        self.rows.add(row | found)
        if arrays is not None:
            self.rows.keep(name, split.hash, arrays)
        return self.rows.rows[name]

    def fit(
        self, method: Method, seed: int, split: Split, path: Path
    ) -> tuple[dict[str, np.ndarray] | None, Row]:
        """Predictions and costs; or None and the failure."""
        if method.peer is None:
            if self.is_small:
                return fit_and_predict(method, split, seed, SHORT)
            try:
                warm_up(method, split.kind)
                return fit_and_predict(method, split, seed, FULL)
            except Exception as error:  # whatever a method raises is what the table shows
                return None, {"failure": f"{type(error).__name__}: {error}"[:200]}
        worker = self.workers.get(method.peer) or Worker(method.peer)
        self.workers[method.peer] = worker
        job = Job(method.name, seed, path, self.temporary / "predictions.npz", self.is_small)
        answer = worker.ask(job)
        if "failure" in answer:
            return None, answer
        with np.load(job.predictions, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}, answer["costs"]


def in_turn(tasks: Iterable[Task], num_seeds: int | None) -> list[tuple[Task, int]]:
    """Tasks and seeds in an order in which a run that is cut has a part of everything.

    First a few seeds of all, then the further splits of networks, which have targets, and of last layers at the end.
    """
    made = [(t, seed) for t in tasks for seed in range(min(num_seeds or t.num_seeds, t.num_seeds))]
    return sorted(
        made, key=lambda one: (one[1] >= NUM_SEEDS, one[1] >= NUM_SEEDS and one[0].kind == VALUES, one[1])
    )


def measure_again(rows: Rows, tasks: Iterable[Task], folder: Path) -> None:
    """Take all measures anew of the predictions that lie there: no fit is needed for a new measure."""
    by_name = {task.name: task for task in tasks}
    splits: dict[tuple[str, int], Split] = {}
    for name, row in sorted(rows.rows.items(), key=lambda one: (one[1]["task"], one[1]["seed"])):
        arrays = rows.kept(name) if row["task"] in by_name and "failure" not in row else None
        if arrays is not None:
            key = (row["task"], row["seed"])
            if key not in splits:
                splits = {key: by_name[row["task"]].split(row["seed"], folder)[0]}  # rows are in order
            split = splits[key]
            if split.hash == row["split"]:
                rows.rows[name] = row | measured(arrays, split)
