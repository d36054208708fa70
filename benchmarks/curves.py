"""Growth of cost with rows, features, classes and integration points: exponents, and a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import bll_pyro
from benchmarks import ours
from benchmarks.competitors import handwritten
from benchmarks.data import made_up
from benchmarks.fresh_process import GIB, measure
from benchmarks.harness import Measure, Timing, growth_exponent, interleave, repeated, repeated_for
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

SIZES: dict[str, list[int]] = {
    "N": [10_000, 20_000, 40_000, 80_000, 160_000],
    "D": [128, 256, 512, 1_024, 2_048],
    "K": [10, 30, 100, 300, 1_000],
    "S": [64, 128, 256, 512, 1_024],
}
SMALL_SIZES = {"N": [200, 400], "D": [8, 16], "K": [3, 6], "S": [16, 32]}
MEMORY_ROWS = [10_000, 100_000, 1_000_000]
MARGIN = 0.1  # largest excess of an exponent, or of a ratio, over the theoretical one
# theoretical exponents other than 1: the rotation of one row to principal axes costs D x D
THEORY = {("bll_pyro, predict", "D"): 2.0}
MEMORY_FEATURES, MEMORY_CLASSES = 128, 10


@dataclass(frozen=True)
class Setting:
    """The sizes of a measurement, of which one is varied at a time."""

    num_rows: int
    num_features: int
    num_classes: int
    num_points: int
    batch_size: int


FULL = Setting(num_rows=5_000, num_features=256, num_classes=20, num_points=256, batch_size=512)
SMALL = Setting(num_rows=200, num_features=8, num_classes=3, num_points=16, batch_size=32)


def run(options: Options) -> Report:
    """Time training steps and predictions over the sizes; peak memory of prediction over the rows."""
    setting, sizes = (SMALL, SMALL_SIZES) if options.small else (FULL, SIZES)
    report = Report("curves", "Growth of cost: Categorical, SVI with Diagonal in its default coordinates")
    curves: dict[str, dict[str, list[float]]] = {}
    for letter, values in sizes.items():
        measures: dict[str, Measure] = {}
        for value in values:
            measures |= {
                f"{work} @ {value}": m for work, m in _measures(setting, letter, value, options).items()
            }
        timings = interleave(measures, options.num_runs, num_warm_ups=0 if options.small else 1)
        curves[letter] = _gather(timings, values)
        table = Table(
            f"Seconds against {letter}",
            {"work": "work", **{str(v): f"{letter} = {v:,}" for v in values}, "exponent": "exponent"},
        )
        for work, seconds in curves[letter].items():
            exponent = growth_exponent(list(map(float, values)), seconds)
            table.rows.append({"work": work, **dict(zip(map(str, values), seconds)), "exponent": exponent})
            if work.startswith("bll_pyro"):
                limit = THEORY.get((work, letter), 1.0) + MARGIN
                report.targets.append(Target(f"{work} against {letter}: exponent", exponent, limit))
        report.tables.append(table)
    report.tables.append(_memory_table(report, options))
    options.results.mkdir(parents=True, exist_ok=True)
    _draw(curves, sizes, options.results / "curves.png")
    report.pictures.append("curves.png")
    report.notes += [
        f"One size varies at a time, from {setting}.",
        "Exponent: slope of log seconds against log size by least squares over the larger half of the sizes.",
        "Theory: 1 everywhere, but 2 for a prediction against D, since rows are turned to principal axes; in plain axes it is 1.",
        "A step costs the same whatever N is, so N is shown for a whole fit of one epoch, with its warm start.",
    ]
    return report


def _measures(setting: Setting, letter: str, value: int, options: Options) -> dict[str, Measure]:
    """The measures at one size: bll_pyro's step (or epoch) and prediction, and the hand-written step."""
    num_rows = value if letter == "N" else setting.num_rows
    num_features = value if letter == "D" else setting.num_features
    num_classes = value if letter == "K" else setting.num_classes
    num_points = value if letter == "S" else setting.num_points
    block = 0.01 if options.small else 0.3
    task = made_up(num_rows, num_features, num_classes)
    data = (task.train_features, task.train_targets)
    layer = bll_pyro.LastLayer(likelihood=bll_pyro.likelihoods.Categorical(num_classes=num_classes))
    one_epoch = bll_pyro.SVI(num_epochs=1, batch_size=setting.batch_size)
    fitted = bll_pyro.fit(layer, data, inference=one_epoch)
    integration = bll_pyro.QuasiMonteCarlo(num_points=num_points)
    measures: dict[str, Measure] = {
        "bll_pyro, predict": repeated(lambda: fitted.predict(task.train_features, integration=integration), 1)
    }
    if letter == "N":
        measures["bll_pyro, fit of one epoch"] = repeated(
            lambda: bll_pyro.fit(layer, data, inference=one_epoch), 1
        )
    if letter == "D":
        plain = bll_pyro.SVI(bll_pyro.guides.Diagonal(principal_axes=False), num_epochs=1)
        unrotated = bll_pyro.fit(layer, data, inference=plain)
        measures["bll_pyro, predict in plain axes"] = repeated(
            lambda: unrotated.predict(task.train_features, integration=integration), 1
        )
    if letter in "DK":
        measures["bll_pyro, step"] = ours.step_seconds(
            *data, num_classes, setting.batch_size, 0, num_steps=40
        )
        step = handwritten.step(*data, num_classes, setting.batch_size, 0)
        measures["hand-written, step"] = repeated_for(step, block)
    return measures


def _gather(timings: dict[str, Timing], values: list[int]) -> dict[str, list[float]]:
    works = dict.fromkeys(name.partition(" @ ")[0] for name in timings)
    return {work: [timings[f"{work} @ {value}"].median for value in values] for work in works}


class RowsOnDemand(Dataset[tuple[Tensor, int]]):
    """Rows that are generated when they are read, so that inputs take no memory."""

    def __init__(self, num_rows: int, num_features: int) -> None:
        self.num_rows = num_rows
        self.block = torch.randn(1_000, num_features, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.block[index % len(self.block)], 0

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [self[index] for index in indices]


def case_predict(num_rows: int, num_features: int, num_classes: int) -> Callable[[], int]:
    """Predict rows that are generated when read; the work returns the bytes of the prediction."""
    task = made_up(2_000, num_features, num_classes)
    layer = bll_pyro.LastLayer(likelihood=bll_pyro.likelihoods.Categorical(num_classes=num_classes))
    fitted = bll_pyro.fit(
        layer, (task.train_features, task.train_targets), inference=bll_pyro.SVI(num_epochs=1)
    )
    fitted.predict(task.train_features)
    rows = RowsOnDemand(num_rows, num_features)

    def work() -> int:
        prediction: Any = fitted.predict(rows)
        kept = (prediction.probs, prediction.total, prediction.aleatoric, prediction.epistemic)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    return work


def _memory_table(report: Report, options: Options) -> Table:
    """Peak memory with and without the prediction itself, whose size grows with the rows."""
    columns = {
        "rows": "rows",
        "peak_gib": "peak, GiB",
        "result_gib": "the prediction itself, GiB",
        "rest_gib": "rest, GiB",
    }
    table = Table("Peak memory of prediction", columns | {"outcome": "outcome"})
    rest: list[float] = []
    for num_rows in [1_000] if options.small else MEMORY_ROWS:
        arguments: dict[str, Any] = {
            "num_rows": num_rows,
            "num_features": MEMORY_FEATURES,
            "num_classes": MEMORY_CLASSES,
        }
        outcome = measure(
            "benchmarks.curves:case_predict",
            arguments,
            num_threads=options.num_threads,
            is_small=options.small,
        )
        if outcome.failure is not None or outcome.peak_bytes is None:
            table.rows.append({"rows": f"{num_rows:,}", "outcome": outcome.failure})
            continue
        rest.append((outcome.peak_bytes - outcome.value) / GIB)
        row = {
            "rows": f"{num_rows:,}",
            "peak_gib": outcome.peak_bytes / GIB,
            "result_gib": outcome.value / GIB,
        }
        table.rows.append(row | {"rest_gib": rest[-1], "outcome": "done"})
    growth = rest[-1] / rest[0] if len(rest) == len(table.rows) else None
    report.targets.append(
        Target("peak memory of prediction, most rows over fewest, without the result", growth, 1 + MARGIN)
    )
    return table


def _draw(curves: dict[str, dict[str, list[float]]], sizes: dict[str, list[int]], path: Path) -> None:
    """Draw one panel for each letter, both axes logarithmic, with a dotted line of slope 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(3.2 * len(curves), 4.2), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (letter, works) in zip(panels, curves.items()):
        values = sizes[letter]
        for work, seconds in works.items():
            panel.loglog(values, seconds, marker="o", label=work)
        last = next(iter(works.values()))[-1]
        panel.loglog(values, [last * v / values[-1] for v in values], "k:", linewidth=0.8, label="slope 1")
        panel.set_xlabel(letter)
        # labels at the sizes only: the default labels between powers of ten overlap
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize="x-small", rotation=30)
        panel.set_xticks([], minor=True)
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(0.0, -0.32))
    panels[0].set_ylabel("seconds")
    figure.savefig(path, dpi=110, bbox_inches="tight")
