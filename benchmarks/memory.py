"""Peak memory of fit and prediction with many outputs, each case in a fresh process.

The functions ``case_*`` run in that process: they generate the inputs and return the work.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal

import bll_pyro
from benchmarks import ours
from benchmarks.competitors import handwritten, laplace_torch, plain_pyro, vbll_layer
from benchmarks.fresh_process import GIB, Outcome, measure
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

COLUMNS = {
    "method": "method",
    "size": "K, D",
    "peak_gib": "peak, GiB",
    "work_gib": "of it in the work, GiB",
    "seconds": "s",
    "outcome": "outcome",
}
LIMIT_GIB = 8.0  # memory, in GiB, at which a process is killed
TIME_LIMIT = 600.0  # seconds after which a process is killed
COMPETITOR_TIME_LIMIT = 120.0  # the same for competitors
NUM_ROWS = 10_000  # training rows

# (inference, K, D, rows predicted, target in GiB)
OURS = [
    (name, num_classes, num_features, 1_000, 3.0)
    for num_classes, num_features in ((3_100, 128), (1_000, 2_048))
    for name in (
        "SVI, Diagonal (principal axes)",
        "SVI, LowRank(8)",
        "SVI, MatrixNormal",
        "Laplace, Kronecker",
    )
]
OURS += [("SVI, Diagonal (principal axes)", 21_000, 1_024, 1_000, 3.0)]
OURS += [(name, 10, 256, 10_000, 2.0) for name in ("SVI, FullRank", "Laplace, Full")]
# (case, K, D, rows, rows predicted)
COMPETITORS = [
    ("hand-written", 3_100, 128, NUM_ROWS, 1_000),
    ("hand-written", 1_000, 2_048, NUM_ROWS, 1_000),
    ("hand-written", 21_000, 1_024, NUM_ROWS, 1_000),
    ("plain Pyro", 3_100, 128, NUM_ROWS, 1_000),
    ("plain Pyro", 1_000, 2_048, NUM_ROWS, 1_000),
    ("plain Pyro, AutoMultivariateNormal", 10, 256, NUM_ROWS, NUM_ROWS),
    ("laplace-torch, Kronecker", 3_100, 128, NUM_ROWS, 1),
    ("laplace-torch, Kronecker", 100, 256, NUM_ROWS, 1_000),
    ("laplace-torch, full", 100, 256, NUM_ROWS, 1_000),
    ("laplace-torch, full", 10, 256, NUM_ROWS, NUM_ROWS),
    ("vbll, dense", 10, 256, NUM_ROWS, 1_000),
]
REQUIRES = {"laplace-torch": "laplace", "vbll": "vbll"}


def _rows(num_rows: int, num_features: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, num_features, generator=generator)
    return features, torch.randint(num_classes, (num_rows,), generator=generator)


def case_ours(
    name: str, num_classes: int, num_features: int, num_rows: int, num_predicted: int
) -> Callable[[], None]:
    """One epoch of SVI (or a whole Laplace fit), then prediction."""
    features, targets = _rows(num_rows, num_features, num_classes)
    inference = ours.INFERENCES[name](bll_pyro)
    if isinstance(inference, bll_pyro.SVI):
        inference = replace(inference, num_epochs=1)
    layer = bll_pyro.LastLayer(likelihood=bll_pyro.likelihoods.Categorical(num_classes=num_classes))

    def work() -> None:
        bll_pyro.fit(layer, (features, targets), inference=inference).predict(features[:num_predicted])

    return work


def case_competitor(
    name: str, num_classes: int, num_features: int, num_rows: int, num_predicted: int
) -> Callable[[], None]:
    """Train one epoch (or a whole fit, for Laplace), then predict."""
    features, targets = _rows(num_rows, num_features, num_classes)
    data = (features, targets, num_classes, 0)
    if name == "hand-written":
        return lambda: _done(handwritten.train(*data, num_epochs=1).predict(features[:num_predicted]))
    if name.startswith("plain Pyro"):
        autoguide = AutoMultivariateNormal if name.endswith("AutoMultivariateNormal") else AutoDiagonalNormal
        trained = partial(plain_pyro.train, *data, autoguide=autoguide, num_epochs=1)
        return lambda: _done(trained()[1](features[:num_predicted]))
    if name.startswith("laplace-torch"):
        structure = {"Kronecker": "kron", "full": "full"}[name.removeprefix("laplace-torch, ")]
        return lambda: _done(
            laplace_torch.fit(*data, structure=structure, tune=False)(features[:num_predicted])
        )
    if name == "vbll, dense":
        return lambda: _done(
            vbll_layer.fit(*data, parameterization="dense", num_epochs=1)(features[:num_predicted])
        )
    raise ValueError(f"Expected one of the cases in COMPETITORS, got {name!r}.")


def _done(_: Any) -> None:
    """Discard a result."""


def _row(method: str, num_classes: int, num_features: int, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "size": f"{num_classes:,}, {num_features:,}"}
    if outcome.failure is not None:
        return row | {"outcome": outcome.failure}
    assert outcome.peak_bytes is not None
    assert outcome.before_bytes is not None
    return row | {
        "peak_gib": outcome.peak_bytes / GIB,
        "work_gib": (outcome.peak_bytes - outcome.before_bytes) / GIB,
        "seconds": outcome.seconds,
        "outcome": "done",
    }


def run(options: Options) -> Report:
    """Run every case in a fresh process, one after the other."""
    report = Report("memory", "Peak memory: one epoch of 10,000 rows, then prediction")
    table = Table("Fit and predict", COLUMNS)
    report.tables.append(table)
    left_out = []
    shrink = 50 if options.small else 1
    limits: dict[str, Any] = {
        "num_threads": options.num_threads,
        "memory_limit": LIMIT_GIB * GIB,
        "time_limit": TIME_LIMIT,
        "is_small": options.small,
    }
    ours_cases = OURS[:1] if options.small else OURS
    for name, num_classes, num_features, num_predicted, limit in ours_cases:
        method = f"bll_pyro, {name}"
        if not options.keeps(method):
            continue
        if ours.inference(name) is None:
            left_out.append(method)
            continue
        arguments = _arguments(name, num_classes, num_features, NUM_ROWS, num_predicted, shrink)
        outcome = measure("benchmarks.memory:case_ours", arguments, **limits)
        table.rows.append(_row(method, num_classes // shrink, num_features, outcome))
        report.targets.append(
            Target(
                f"{method}, K = {num_classes:,}, D = {num_features:,}: GiB",
                table.rows[-1].get("peak_gib"),
                limit,
            )
        )
    competitors = COMPETITORS[:1] if options.small else COMPETITORS
    for name, num_classes, num_features, num_rows, num_predicted in competitors:
        needed = REQUIRES.get(name.split(",")[0])
        if not options.keeps(name):
            continue
        if needed is not None and find_spec(needed) is None:
            left_out.append(name)
            continue
        arguments = _arguments(name, num_classes, num_features, num_rows, num_predicted, shrink)
        outcome = measure(
            "benchmarks.memory:case_competitor", arguments, **(limits | {"time_limit": COMPETITOR_TIME_LIMIT})
        )
        table.rows.append(_row(name, num_classes // shrink, num_features, outcome))
    report.notes += [
        "Peak resident memory of the whole process, interpreter and libraries included; work: above the peak that "
        "imports and inputs had reached. Standard Normal features, labels at random.",
        f"A process is ended when it passes {LIMIT_GIB:.0f} GiB or {TIME_LIMIT:.0f} s (that of a competitor "
        f"{COMPETITOR_TIME_LIMIT:.0f} s); 1,000 rows are predicted "
        f"(10,000 at K = 10; a single one by laplace-torch at K = 3,100).",
    ]
    if left_out:
        report.notes.append(f"Not there, left out: {', '.join(sorted(set(left_out)))}.")
    return report


def _arguments(
    name: str, num_classes: int, num_features: int, num_rows: int, num_predicted: int, shrink: int
) -> dict[str, Any]:
    sizes = {"num_classes": num_classes // shrink, "num_features": num_features}
    sizes |= {"num_rows": num_rows // shrink, "num_predicted": max(1, num_predicted // shrink)}
    return {"name": name} | sizes
