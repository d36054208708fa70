"""Tables and targets out of the stored results.

Methods are compared on the same splits. The best plain method of a data set and size is the one with the lowest mean
NLL over the splits: picked afterwards, and so a little too good.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.defaults.measure import chosen
from benchmarks.defaults.methods import METHODS, OURS
from benchmarks.defaults.splits import DataSet
from benchmarks.defaults.store import Row, Store
from benchmarks.report import Report, Table, Target

PLAIN = tuple(method.name for method in METHODS if method.is_plain)
LIMIT = 2.0  # per cent of the NLL
Results = dict[tuple[str, str], Row]  # by split and shift


@dataclass
class Cell:
    """What is stored of one data set and size: the rows of each method."""

    data: DataSet
    size: int
    methods: dict[str, Results] = field(default_factory=dict)

    def mean(self, method: str, score: str, shift: str = "none") -> float | None:
        """Mean over the splits; None if there is nothing."""
        rows = self.methods.get(method, {}).items()
        values = [row[score] for (_, of), row in rows if of == shift and score in row]
        return float(np.mean(values)) if values else None

    def differences(self, method: str, other: str, score: str = "nll", shift: str = "none") -> np.ndarray:
        """Score of one method less that of another, one for each split that both have."""
        mine, theirs = self.methods.get(method, {}), self.methods.get(other, {})
        return np.array(
            [
                row[score] - theirs[key][score]
                for key, row in mine.items()
                if key in theirs and key[1] == shift and score in row
            ]
        )

    @property
    def best(self) -> str | None:
        """The plain method with the lowest mean NLL."""
        means = {name: self.mean(name, "nll") for name in PLAIN}
        there = {name: mean for name, mean in means.items() if mean is not None}
        return min(there, key=lambda name: there[name]) if there else None

    @property
    def is_regression(self) -> bool:
        """Whether its targets are values."""
        return any("rmse" in row for results in self.methods.values() for row in results.values())


def cells(store: Store, sets: Iterable[DataSet], num_seeds: int) -> list[Cell]:
    """The cells of the splits that a run of ``num_seeds`` looks at."""
    made: dict[tuple[str, int], Cell] = {}
    looked_at = set()
    for data, size, seed in chosen(sets, num_seeds):
        made.setdefault((data.name, size), Cell(data, size))
        looked_at.add((data.name, size, seed))
    for (name, size, seed, method, shift), row in store.rows.items():
        if (name, size, seed) in looked_at:
            made[name, size].methods.setdefault(method, {})[row["split"], shift] = row
    return list(made.values())


def add(report: Report, store: Store, sets: Sequence[DataSet], num_seeds: int) -> None:
    """Add all tables and targets to a report."""
    found = cells(store, sets, num_seeds)
    main, under_shift, by_size = excesses(found), shifts(found), digits(found)
    report.tables += [main, every_method(found, False), every_method(found, True), under_shift, *by_size]
    report.targets += targets(main.rows, under_shift.rows, by_size)
    report.notes += [
        "Excess: mean over the splits of our test NLL less that of the best plain method, over the mean of the latter; "
        "the standard error is that of the paired differences. Best plain: the lowest mean NLL of "
        + "; ".join(PLAIN) + ". Shifts are of the test rows alone, and the plain method is the best on rows as they are.",
        "ResNet-20, seen: features of rows that the network was trained on, too good to fit a last layer on; the test "
        "rows are not.",
        "logistic: LogisticRegressionCV, ten penalties, five folds, log loss; for 150 and 1,200 classes four and three. raw: "
        "without StandardScaler. Seconds of a temperature and of laplace-torch's draws come on top of the fit that they share.",
        *(f"{data.name}: {data.recipe}." for data in sets),
        *incomplete(found, num_seeds),
    ]  # fmt: skip


def targets(rows: list[Row], under_shift: list[Row], by_size: list[Table]) -> list[Target]:
    """What the default was to reach."""
    judged = [row for row in rows if row["excess"] is not None]
    if not judged:
        return []
    names = dict.fromkeys(row["set"] for row in judged)
    sets = {name: float(np.mean([r["excess"] for r in judged if r["set"] == name])) for name in names}
    worst = max(sets, key=lambda name: sets[name])
    made = [
        Target(
            f"excess over the best plain one, %, mean over sizes, worst data set ({worst})",
            sets[worst],
            LIMIT,
        ),
        *_shares("data sets", list(sets.values())),
        Target("the same of the worst data set and size", max(row["excess"] for row in judged), LIMIT),
        *_shares("data sets at one size", [row["excess"] for row in judged]),
    ]
    for row in under_shift:
        for score in ("nll", "ece"):
            what = f"shift {row['shift']}: median of our {score.upper()} less that of the best plain one"
            made.append(Target(what, row[score], 0.0))
    rises = [row["rise"] for table in by_size for row in table.rows if row["rise"] is not None]
    if rises:
        made.append(
            Target("digits: largest rise of our NLL with more rows, standard errors", max(rises), 2.0)
        )
    return made


def _shares(of: str, excesses: list[float]) -> list[Target]:
    found = np.array(excesses)
    return [
        Target(f"share of {of} with at most {LIMIT:g}%", float((found <= LIMIT).mean()), 1.0, ">="),
        Target(f"share of {of} below the best plain one", float((found < 0).mean()), 0.5, ">="),
    ]


def incomplete(found: list[Cell], num_seeds: int) -> list[str]:
    """A note on splits that are not judged, since ours or all plain methods lack them."""
    wanted = sum(min(num_seeds, cell.data.num_seeds) for cell in found)
    judged = sum(len(cell.differences(OURS, cell.best)) for cell in found if cell.best is not None)
    if judged == wanted:
        return []
    return [f"Incomplete: judged on {judged} of {wanted} splits; targets are of what is there."]


def excesses(found: list[Cell]) -> Table:
    """Ours beside the best plain one."""
    table = Table(
        "Our default beside the best plain method",
        {
            "set": "data set", "size": "rows", "seeds": "splits", "nll": "our test NLL", "plain": "best plain",
            "plain_nll": "its test NLL", "excess": "excess, %", "error": "standard error, %",
            "accuracy": "accuracy or RMSE", "plain_accuracy": "its", "ece": "ECE", "plain_ece": "its ECE",
            "coverage": "share in 90%", "plain_coverage": "its share", "cpu": "fit, CPU s", "plain_cpu": "its",
        },
    )  # fmt: skip
    for cell in found:
        best = cell.best
        point = "rmse" if cell.is_regression else "accuracy"
        row: dict[str, Any] = {"set": cell.data.name, "size": cell.size, "plain": best, "excess": None}
        row |= {name: cell.mean(OURS, name) for name in ("nll", "ece", "coverage", "cpu")}
        row["accuracy"] = cell.mean(OURS, point)
        if best is not None:
            row |= {f"plain_{name}": cell.mean(best, name) for name in ("nll", "ece", "coverage", "cpu")}
            row["plain_accuracy"] = cell.mean(best, point)
            both = cell.differences(OURS, best)
            row["seeds"] = len(both)
            if len(both):
                base = abs(row["plain_nll"])
                row["excess"] = 100 * float(both.mean()) / base
                row["error"] = 100 * standard_error(both) / base
        table.rows.append(row)
    return table


def standard_error(values: np.ndarray) -> float:
    """Standard error of a mean; NaN of a single number."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def every_method(found: list[Cell], is_regression: bool) -> Table:
    """Mean test NLL of every method."""
    there = [cell for cell in found if cell.methods and cell.is_regression == is_regression]
    names = [method.name for method in METHODS if any(method.name in cell.methods for cell in there)]
    kind = "values" if is_regression else "classes"
    table = Table(
        f"Mean test NLL of every method, {kind}", {"set": "data set", "size": "rows"} | {n: n for n in names}
    )
    for cell in there:
        means = {name: cell.mean(name, "nll") for name in names}
        table.rows.append({"set": cell.data.name, "size": cell.size} | means)
    return table


def shifts(found: list[Cell]) -> Table:
    """Ours less the best plain one under every shift: medians over data sets and sizes."""
    table = Table(
        "Shifted test rows: ours less the best plain one, medians over data sets and sizes",
        {"shift": "shift", "cells": "data sets and sizes", "nll": "NLL", "ece": "ECE", "worst": "largest, NLL"},
    )  # fmt: skip
    for shift in dict.fromkeys(shift for cell in found for shift in ("none", *cell.data.shifts)):
        pairs = [(cell, cell.best) for cell in found if cell.best is not None]
        nll = [cell.differences(OURS, best, "nll", shift) for cell, best in pairs if best]
        ece = [cell.differences(OURS, best, "ece", shift) for cell, best in pairs if best]
        nll_means, ece_means = ([float(d.mean()) for d in each if len(d)] for each in (nll, ece))
        if nll_means:
            table.rows.append(
                {
                    "shift": shift, "cells": len(nll_means), "nll": float(np.median(nll_means)),
                    "ece": float(np.median(ece_means)) if ece_means else None, "worst": max(nll_means),
                }
            )  # fmt: skip
    return table


def digits(found: list[Cell]) -> list[Table]:
    """Digits by the number of rows, as they are and shifted."""
    there = [cell for cell in found if cell.data.name == "digits" and OURS in cell.methods]
    if not there:
        return []
    names = ("none", *there[0].data.shifts)
    columns = {"size": "rows"}
    for shift in names:
        columns |= {shift: f"{shift}: our NLL", f"plain, {shift}": "best plain"}
    table = Table("Digits by the number of rows", columns | {"rise": "rise over fewer rows, standard errors"})
    earlier: Cell | None = None
    for cell in there:
        row: dict[str, Any] = {"size": cell.size}
        for shift in names:
            row[shift] = cell.mean(OURS, "nll", shift)
            row[f"plain, {shift}"] = None if cell.best is None else cell.mean(cell.best, "nll", shift)
        row["rise"] = None if earlier is None else rise(earlier, cell)
        table.rows.append(row)
        earlier = cell
    return [table]


def rise(earlier: Cell, cell: Cell) -> float:
    """Mean of the rise of our NLL from fewer rows to more, seed by seed, over its standard error."""
    fewer, more = (
        {row["seed"]: row["nll"] for (_, shift), row in one.methods[OURS].items() if shift == "none"}
        for one in (earlier, cell)
    )
    changes = np.array([more[seed] - fewer[seed] for seed in more if seed in fewer])
    return float(changes.mean()) / standard_error(changes)
