"""Advice on temperatures."""

import torch

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.practice.finding import Finding
from benchmarks.practice.splits import loss, mean, overconfidence, seeds, split_of
from benchmarks.report import Table, Target

TOPIC = "Temperature"
SETS = (
    ("digits", 80),
    ("digits", 240),
    ("digits", 600),
    ("breast cancer", 60),
    ("breast cancer", 200),
    ("wine", 60),
)
POWERS = (1.0, 2.0, 4.0, 10.0)


def one_temperature(options: Options) -> Finding:
    """The default's temperature, which is found on left-out rows, beside the same fit without it."""
    table = Table(
        "One temperature from left-out rows: test NLL",
        {
            "set": "data",
            "with": "with (default)",
            "without": "without",
            "temperature": "temperature",
            "sure": "confidence less accuracy, without",
        },
    )
    for name, rows in SETS[:1] if options.small else SETS:
        found: dict[str, list[float]] = {key: [] for key in ("with", "without", "temperature", "sure")}
        for seed in seeds(options):
            split = split_of(name, rows, seed)
            fit = bll.fit(split.layer(), split.train, seed=seed)
            plain = fit.with_recalibration(None)
            found["with"].append(loss(fit, split))
            found["without"].append(loss(plain, split))
            found["temperature"].append(
                1.0 if fit.recalibration is None else float(fit.recalibration.temperature)
            )
            found["sure"].append(overconfidence(plain, split))
        table.rows.append(
            {"set": f"{name}, {rows} rows", **{key: mean(values) for key, values in found.items()}}
        )
    ratio = mean([float(row["with"]) / float(row["without"]) for row in table.rows])
    target = Target("test NLL with the temperature over that without, mean of the data sets", ratio, 1.0)
    return Finding(TOPIC, "Keep the temperature that a fit finds on its left-out rows", target, table)


def cold_posterior(options: Options) -> Finding:
    """A likelihood raised to a power, as weights of the rows, in place of a temperature after the fit."""
    columns = {
        "power": "likelihood to the power",
        "tempered": "test NLL",
        "both": "with the temperature too",
        "epistemic": "mean epistemic uncertainty, nats",
    }
    table = Table("A tempered posterior, digits, 240 rows", columns)
    for power in POWERS[:2] if options.small else POWERS:
        found: dict[str, list[float]] = {key: [] for key in ("tempered", "both", "epistemic")}
        for seed in seeds(options):
            split = split_of("digits", 240, seed)
            fit = bll.fit(split.layer(), split.train, sample_weight=torch.full((240,), power), seed=seed)
            plain = fit.with_recalibration(None)
            found["tempered"].append(loss(plain, split))
            found["both"].append(loss(fit, split))
            found["epistemic"].append(float(plain.predict(split.test[0]).epistemic.mean()))
        table.rows.append({"power": power, **{key: mean(values) for key, values in found.items()}})
    best, default = min(float(row["tempered"]) for row in table.rows), float(table.rows[0]["both"])
    target = Target("test NLL of the best power over that of the temperature", best / default, 1.0)
    return Finding(
        TOPIC,
        "Sharpen predictions by a cold posterior",
        target,
        table,
    )
