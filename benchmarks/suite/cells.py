"""The rows of the suite by task and method: means, standard errors, and differences seed by seed."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.suite.measures import LARGER
from benchmarks.suite.methods import BY_NAME, OURS, Method
from benchmarks.suite.splits import CLASSES
from benchmarks.suite.store import Row, Rows
from benchmarks.suite.tasks import Task

LEVEL = 0.9  # of the intervals
COST = "seconds"  # of the fit and of the prediction of all parts, processor time


@dataclass
class Cell:
    """The rows of one task: by method, and by seed."""

    task: Task
    methods: dict[str, dict[int, Row]] = field(default_factory=dict)

    def values(self, method: str, measure: str) -> dict[int, float]:
        """A measure by seed."""
        rows = self.methods.get(method, {})
        if measure == COST:
            return {
                seed: row["fit_cpu"] + row["predict_cpu"] for seed, row in rows.items() if "fit_cpu" in row
            }
        return {seed: row[measure] for seed, row in rows.items() if measure in row}

    def mean(self, method: str, measure: str) -> float | None:
        """Mean over the seeds; None if there is none."""
        found = list(self.values(method, measure).values())
        return float(np.mean(found)) if found else None

    def badness(self, method: str, measure: str) -> float | None:
        """The mean, so signed that smaller is better; for coverage the distance of the mean from the level."""
        mean = self.mean(method, measure)
        if mean is None:
            return None
        if measure == "coverage":
            return abs(mean - LEVEL)
        return -mean if measure in LARGER else mean

    def gap(self, other: str, measure: str) -> tuple[float, float] | None:
        """How much worse our default is than another, on the seeds that both have, and the standard error; None without any.

        The error of a single seed is not known (NaN). For coverage it is how much further the mean is from the level.
        """
        mine, theirs = self.values(OURS, measure), self.values(other, measure)
        seeds = [seed for seed in mine if seed in theirs]
        if not seeds:
            return None
        ours, others = (np.array([values[seed] for seed in seeds]) for values in (mine, theirs))
        both = ours - others
        worse = float(both.mean()) * (-1 if measure in LARGER else 1)
        if measure == "coverage":
            worse = abs(float(ours.mean()) - LEVEL) - abs(float(others.mean()) - LEVEL)
        return worse, float(both.std(ddof=1) / len(both) ** 0.5) if len(both) > 1 else float("nan")

    def shown(self, method: str, measure: str) -> str | None:
        """Mean and standard error as a cell of a table."""
        found = list(self.values(method, measure).values())
        if not found:
            return None
        if len(found) == 1:
            return f"{found[0]:.4g}"
        return f"{np.mean(found):.4g} ({np.std(found, ddof=1) / len(found) ** 0.5:.2g})"

    @property
    def competitors(self) -> list[Method]:
        """The methods of others that have measures here."""
        return [
            method
            for name, method in BY_NAME.items()
            if name != OURS and not method.is_variant and self.mean(name, "nll") is not None
        ]

    @property
    def is_classes(self) -> bool:
        """Whether targets are classes."""
        return self.task.kind == CLASSES


def cells(rows: Rows, tasks: Iterable[Task]) -> list[Cell]:
    """A cell for each task that has rows."""
    made = {task.name: Cell(task) for task in tasks}
    for row in rows.rows.values():
        if row["task"] in made and row["method"] in BY_NAME:
            made[row["task"]].methods.setdefault(row["method"], {})[row["seed"]] = row
    return [cell for cell in made.values() if cell.methods]
