"""The tables of the suite, and its targets."""

from typing import Any

import numpy as np

from benchmarks.report import Report, Table, Target
from benchmarks.suite import losses
from benchmarks.suite.cells import Cell
from benchmarks.suite.methods import BY_NAME, METHODS, OURS
from benchmarks.suite.ranks import Ranks, all_ranks
from benchmarks.suite.splits import NETWORK, VALUES
from benchmarks.suite.store import Rows

QUALITY = {"nll": "NLL", "accuracy": "accuracy", "ece": "ECE", "brier": "Brier score"}
UNKNOWN = {
    "auroc_near": "AUROC, near", "auroc_far": "far", "fpr95_near": "FPR95, near", "fpr95_far": "far",
    "caught_near": "caught, near", "caught_far": "far", "false_alarms": "false alarms",
    "auroc_near_entropy": "AUROC by entropy, near", "auroc_far_entropy": "far",
}  # fmt: skip
VALUE_MEASURES = {
    "nll": "Test NLL",
    "rmse": "Test RMSE",
    "crps": "CRPS",
    "coverage": "Share inside 90% intervals",
}
RIVALS = ("vbll", "laplace-torch")  # of the targets of networks
MINUTES = 90.0


def add(report: Report, found: list[Cell], rows: Rows, absent: dict[str, str]) -> list[Ranks]:
    """Add all tables and targets; the losses come first."""
    ranks = all_ranks(found)
    lost = losses.table(found)
    report.tables += [lost, rank_table(ranks)]
    for cell in (cell for cell in found if cell.is_classes):
        report.tables += [methods_down(cell, "quality", QUALITY), methods_down(cell, "unknown rows", UNKNOWN)]
    for kind, title in ((VALUES, "UCI, last layer only"), (NETWORK, "UCI, end to end")):
        of_kind = [cell for cell in found if cell.task.kind == kind]
        if of_kind:
            report.tables += [
                tasks_across(of_kind, f"{title}: {t.lower()}", m) for m, t in VALUE_MEASURES.items()
            ]
    report.tables += [
        costs(found, "fit_cpu", "Fit"),
        costs(found, "predict_cpu", "Prediction of all rows that judge"),
    ]
    of_classes = [cell for cell in found if cell.is_classes]
    report.tables += [
        costs(of_classes, "alarm_cpu", "Scores of unknown rows beside predictions"),
        states(rows, absent),
    ]
    report.targets += targets(found, ranks, rows)
    report.notes += [f"{cell.task.name}: {cell.task.recipe}." for cell in found]
    report.notes.append(
        f"Lost: {len(lost.rows)} of {losses.num_compared(found)} tasks and measures, each against the best of all competitors."
    )
    return ranks


def methods_down(cell: Cell, what: str, measures: dict[str, str]) -> Table:
    """One task: methods down, measures across."""
    table = Table(f"{cell.task.name}: {what}", {"method": "method"} | measures)
    for name in BY_NAME:
        if cell.mean(name, "nll") is not None:
            table.rows.append({"method": name} | {key: cell.shown(name, key) for key in measures})
    return table


def tasks_across(found: list[Cell], title: str, measure: str) -> Table:
    """One measure: methods down, tasks across."""
    table = Table(title, {"method": "method"} | {cell.task.name: cell.task.name for cell in found})
    for name in BY_NAME:
        shown: dict[str, Any] = {cell.task.name: cell.shown(name, measure) for cell in found}
        if any(shown.values()):
            table.rows.append({"method": name} | shown)
    return table


def costs(found: list[Cell], measure: str, what: str) -> Table:
    """Mean processor seconds."""
    columns = {"method": "method"} | {cell.task.name: cell.task.name for cell in found}
    table = Table(f"{what}, CPU seconds, mean", columns)
    for name in BY_NAME:
        means = {cell.task.name: cell.mean(name, measure) for cell in found}
        if any(mean is not None for mean in means.values()):
            table.rows.append({"method": name} | means)
    return table


def rank_table(ranks: list[Ranks]) -> Table:
    """Mean ranks: methods down, what is ranked across."""
    table = Table(
        "Mean ranks over the tasks, 1 is best",
        {"method": "method"} | {one.what: f"{one.what} ({one.num_blocks})" for one in ranks},
    )
    for name, method in BY_NAME.items():
        if not method.is_variant and any(name in one.mean for one in ranks):
            table.rows.append({"method": name} | {one.what: one.mean.get(name) for one in ranks})
    differences: dict[str, Any] = {one.what: one.critical_difference for one in ranks}
    table.rows.append({"method": "critical difference, 5%"} | differences)
    return table


def states(rows: Rows, absent: dict[str, str]) -> Table:
    """Every method: settings, version, and what did not run."""
    table = Table(
        "Methods and their environments",
        {"method": "method", "note": "settings", "versions": "versions", "state": "state"},
    )
    for method in METHODS:
        own = [row for row in rows.rows.values() if row["method"] == method.name]
        failures = [row for row in own if "failure" in row]
        state = f"{len(own) - len(failures)} fits"
        if failures:
            state += f"; {len(failures)} failed: {failures[0]['failure']}"
        state = absent.get(method.name, state) if not own else state
        versions = "; ".join(sorted({row["versions"] for row in own}))
        table.rows.append({"method": method.name, "note": method.note, "versions": versions, "state": state})
    return table


def targets(found: list[Cell], ranks: list[Ranks], rows: Rows) -> list[Target]:
    """What was asked for, before anything was measured."""
    wanted = sum(c.task.num_seeds * sum(c.task.kind in m.fits for m in METHODS) for c in found)
    there = sum(len(of) for cell in found for of in cell.methods.values())
    made = [Target("share of the rows that are there (the rest: another run)", there / wanted, 1.0, ">=")]
    for one in ranks:
        rivals = {name: rank for name, rank in one.mean.items() if name != OURS}
        best = min(rivals, key=lambda name: rivals[name])
        made.append(
            Target(
                f"{one.what}: our mean rank less the best competitor's ({best})",
                one.mean[OURS] - rivals[best],
                0.0,
            )
        )
    networks = [cell for cell in found if cell.task.kind == NETWORK]
    of = f"end to end: sets of {len(networks)} with"
    wins = [cell for cell in networks if all(not_above(cell, "nll", rival) for rival in RIVALS)]
    near = [is_near_best(cell, "rmse") for cell in networks]
    num_near = None if None in near else sum(map(bool, near))
    if networks:
        made += [
            Target(f"{of} NLL at or below both of {', '.join(RIVALS)}", len(wins), 4, ">="),
            Target(f"{of} RMSE within a standard error of the best", num_near, len(networks), ">="),
        ]  # fmt: skip
    minutes = sum(row.get("wall", 0.0) for row in rows.rows.values()) / 60
    made.append(Target("minutes of all fits and predictions, one thread", minutes, MINUTES))
    return made


def not_above(cell: Cell, measure: str, rival: str) -> bool:
    """Whether our mean is at or below a rival's, on the splits that both have."""
    gap = cell.gap(rival, measure)
    return gap is not None and gap[0] <= 0


def is_near_best(cell: Cell, measure: str) -> bool | None:
    """Whether no competitor is better by more than the standard error of the paired differences; None for a single split."""
    found = [cell.gap(method.name, measure) for method in cell.competitors]
    if not found or any(gap is None or np.isnan(gap[1]) for gap in found):
        return None
    return all(gap is not None and gap[0] <= gap[1] for gap in found)
