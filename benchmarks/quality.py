"""Fit time, prediction time and quality of every method on stored Fashion-MNIST features; MNIST is the unknown."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.competitors import METHODS, REFERENCE
from benchmarks.competitors.map_head import given_head
from benchmarks.data import Task, fashion_features, made_up
from benchmarks.harness import Timing, ratio
from benchmarks.method import Method
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.scores import classification_scores

SCORES = ("nll", "accuracy", "ece", "auroc_entropy", "auroc_epistemic")
COLUMNS = {
    "method": "method",
    "fit_seconds": "fit, s",
    "fit_ratio": "fit over reference (quartiles)",
    "predict_seconds": "predict, s",
    "predict_ratio": "predict over reference (quartiles)",
    "nll": "NLL",
    "accuracy": "accuracy",
    "ece": "ECE (15)",
    "auroc_entropy": "AUROC, entropy",
    "auroc_epistemic": "AUROC, mutual information",
    "note": "set-up",
}


def task_for(options: Options) -> Task:
    """The features; in a small run a small simulated task, which needs no data."""
    return made_up(600, 8, 3, num_test_rows=200) if options.small else fashion_features()


def compare(task: Task, methods: Sequence[Method], options: Options) -> dict[str, dict[str, Any]]:
    """Run all methods in interleaved rounds, each with its own seed; seconds and scores are lists over the rounds."""
    tiny = made_up(64, task.train_features.shape[1], task.num_classes)
    for method in methods:  # warm-up: the first calls in torch load and compile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method.fit(tiny.train_features, tiny.train_targets, task.num_classes, 0)(tiny.train_features)
    found: dict[str, dict[str, Any]] = {m.name: {k: [] for k in ("fit", "predict", *SCORES)} for m in methods}
    for seed in range(options.num_runs):
        shift = seed % len(methods)
        for method in [*methods[shift:], *methods[:shift]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                began = time.perf_counter()
                predict = method.fit(task.train_features, task.train_targets, task.num_classes, seed)
                fitted = time.perf_counter()
                prediction = predict(task.test_features)
                predicted = time.perf_counter()
                ood = predict(task.ood_features)
            scores = classification_scores(
                prediction.probs,
                task.test_targets,
                epistemic=prediction.epistemic,
                ood_probs=ood.probs,
                ood_epistemic=ood.epistemic,
            )
            mine = found[method.name]
            mine["fit"].append(fitted - began)
            mine["predict"].append(predicted - fitted)
            for key, value in scores.items():
                mine[key].append(value)
    return found


def median(values: list[float | None]) -> float | None:
    """Median over the rounds; None where the method gives no such figure."""
    return None if None in values else float(np.median(np.array(values, dtype=float)))


def table_of(
    title: str, found: dict[str, dict[str, Any]], reference: str, notes: dict[str, str] | None = None
) -> Table:
    """Put medians and ratios against the reference of the same rounds into a table."""
    table = Table(title, dict(COLUMNS))
    if not notes:
        del table.columns["note"]
    timings = {name: {k: Timing(tuple(mine[k])) for k in ("fit", "predict")} for name, mine in found.items()}
    for name, mine in found.items():
        row: dict[str, Any] = {"method": name, "rounds": mine, "note": (notes or {}).get(name, "")}
        for kind in ("fit", "predict"):
            row[f"{kind}_seconds"] = timings[name][kind].median
            row[f"{kind}_ratio"] = ratio(timings[name][kind], timings[reference][kind])
        table.rows.append(row | {key: median(mine[key]) for key in SCORES})
    return table


def run(options: Options) -> Report:
    """Compare all methods that are installed."""
    task = task_for(options)
    asked = [m for m in METHODS if m.name == REFERENCE.name or options.keeps(m.name)]
    if task.head_weight is not None and task.head_bias is not None:
        asked.insert(0, given_head(task.head_weight, task.head_bias))
    if options.keeps(ours.DEFAULT):
        asked.append(ours.METHOD)
    methods = [m for m in asked if m.is_available]
    report = Report("quality", f"Quality and time on {task.name}")
    found = compare(task, methods, options)
    report.tables.append(table_of("All methods", found, REFERENCE.name, {m.name: m.note for m in methods}))
    if ours.DEFAULT in found:
        mine = found[ours.DEFAULT]
        report.targets += [
            Target("bll_pyro, defaults: test NLL", median(mine["nll"]), 0.285),
            Target("bll_pyro, defaults: accuracy", median(mine["accuracy"]), 0.898, ">="),
            Target("bll_pyro, defaults: ECE", median(mine["ece"]), 0.012),
        ]
        plain = found.get("plain Pyro")
        if plain is not None:
            pyro_fit = Timing(tuple(plain["fit"]))
            share: float | None = ratio(Timing(tuple(mine["fit"])), pyro_fit).median
            report.targets.append(Target("bll_pyro's whole default fit over plain Pyro's fit", share, 0.1))
            sooner = time_to_quality(task, options)
            report.tables.append(sooner)
            seconds = [row["seconds"] for row in sooner.rows if row["nll"] <= 0.285]
            share = min(seconds) / pyro_fit.median if seconds else None
            what = "shortest fit of bll_pyro with a test NLL of 0.285 or less, over plain Pyro's fit"
            report.targets.append(Target(what, share, 0.1))
    left_out = [m.name for m in asked if not m.is_available]
    report.notes += [
        f"Reference of the ratios: {REFERENCE.name}. Every round has its own seed; scores are medians over rounds.",
        "Fit time holds everything that depends on the data: standardisation, warm start, MAP head, tuning.",
        "Only bll_pyro standardises features; the others get them raw, as their users do.",
        "Predict time is for the test rows, with mutual information where the method has it.",
    ]
    if left_out:
        report.notes.append(f"Not installed, left out: {', '.join(left_out)}.")
    return report


def time_to_quality(task: Task, options: Options) -> Table:
    """Fit with fewer passes over the data than by default, and see how soon a good score is there."""
    import bll_pyro as bll

    table = Table(
        "Time to a test NLL: fits that end after so many passes",
        {"method": "method", "seconds": "fit, s", "nll": "NLL"},
    )

    def ours_with(num_epochs: int) -> Method:
        def fit(features: Any, targets: Any, num_classes: int, seed: int) -> Any:
            layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=num_classes))
            fitted = bll.fit(layer, (features, targets), inference=bll.SVI(num_epochs=num_epochs), seed=seed)
            return lambda rows: fitted.predict(rows)

        return Method(f"bll_pyro, {num_epochs} epochs", fit)

    methods = [ours_with(number) for number in ((1, 2) if options.small else (1, 2, 3, 4, 6, 8))]
    found = compare(task, methods, options)
    for name, mine in found.items():
        table.rows.append(
            {"method": name, "seconds": median(mine["fit"]), "nll": median(mine["nll"]), "rounds": mine}
        )
    return table
