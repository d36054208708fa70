"""Advice on the scale of the prior."""

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.practice.drawing import lines
from benchmarks.practice.finding import Finding
from benchmarks.practice.splits import Split, loss, mean, seeds, split_of
from benchmarks.report import Table, Target

TOPIC = "Prior scale"
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SETS = (
    "digits, 240 rows",
    "wine, 60 rows",
    "breast cancer, 100 rows",
    "diabetes, 200 rows",
    "digits, 240 rows, 400 random features",
)
Line = dict[str, float | str]


def standardise(options: Options) -> Finding:
    """The same prior on features in other units."""
    table = Table(
        "Features in other units, a prior scale of 1: test NLL",
        {"factor": "features times", "standardised": "standardised (default)", "raw": "`standardize=False`"},
    )
    for factor in (0.01, 1.0) if options.small else (0.01, 1.0, 100.0):
        found: dict[bool, list[float]] = {True: [], False: []}
        for seed in seeds(options, 3):
            split = split_of("digits", 300, seed)
            (inputs, labels), (test_inputs, test_labels) = split.train, split.test
            split = Split((inputs * factor, labels), (test_inputs * factor, test_labels), split.likelihood)
            for standardize, losses in found.items():
                fit = bll.fit(
                    split.layer(1.0, standardize=standardize), split.train, calibration=None, seed=seed
                )
                losses.append(loss(fit, split))
        table.rows.append({"factor": factor, "standardised": mean(found[True]), "raw": mean(found[False])})
    values = [row["standardised"] for row in table.rows]
    target = Target("largest test NLL over the smallest, standardised", max(values) / min(values), 1.01)
    return Finding(
        TOPIC, "Standardise the features; then a prior scale means the same on every backbone", target, table
    )


def learn_it(options: Options) -> Finding:
    """The scale that the library finds, against scales that the test rows would choose."""
    columns = (
        {"set": "data"}
        | {str(scale): f"{scale:g}" for scale in SCALES}
        | {"learned": "learned (default)", "scale": "learned scale"}
    )
    table = Table("Test NLL by prior scale", columns, grid(options))
    excess = [float(row["learned"]) - min(float(row[str(scale)]) for scale in SCALES) for row in table.rows]
    target = Target(
        "test NLL above the best of six scales, nats, largest of the data sets", max(excess), 0.05
    )
    return Finding(
        TOPIC,
        "Leave the prior scale at None",
        target,
        table,
        "prior_scale",
        lambda path: _draw(table, path),
    )


def unit_scale(options: Options) -> Finding:
    """A scale of 1 everywhere."""
    excess = [float(row["1.0"]) - float(row["learned"]) for row in grid(options)]
    target = Target(
        "test NLL of scale 1 above that of the learned scale, nats, largest of the data sets",
        max(excess),
        0.05,
    )
    return Finding(TOPIC, "N(0, 1) is a weak prior that suits every last layer", target)


@cache
def grid(options: Options) -> list[Line]:
    """Test NLL of every data set at every scale, once for a run."""
    return [_line(name, options) for name in (SETS[1:2] if options.small else SETS)]


def _line(name: str, options: Options) -> Line:
    columns: list[float | None] = [*SCALES, None]
    found: dict[str, list[float]] = {str(scale or "learned"): [] for scale in columns}
    learned = []
    for seed in seeds(options, 3):
        data, rows, *wide = name.split(", ", 2)
        split = split_of(data, int(rows.split()[0]), seed)
        if wide:
            split = split.through(_random_units)
        for scale in columns:
            fit = bll.fit(split.layer(scale), split.train, seed=seed)
            found[str(scale or "learned")].append(loss(fit, split))
        learned.extend(float(value.log().mean()) for value in fit.posterior.learned.values())
    return {
        "set": name,
        **{key: mean(values) for key, values in found.items()},
        "scale": math.exp(mean(learned)),
    }


def _random_units(inputs: Tensor) -> Tensor:
    directions = torch.randn(inputs.shape[1], 400, generator=torch.Generator().manual_seed(0))
    return (inputs @ directions / 64).relu()


def _draw(table: Table, path: Path) -> None:
    curves = {row["set"]: [row[str(scale)] - row["learned"] for scale in SCALES] for row in table.rows}
    lines(path, SCALES, curves, "prior scale", "test NLL less that of the learned scale", top=0.6)
