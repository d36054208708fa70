"""Advice on the number of points and draws."""

import math
from pathlib import Path

import torch
from torch import Tensor

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.practice.drawing import lines
from benchmarks.practice.finding import Finding
from benchmarks.practice.splits import loss, mean, seeds, split_of
from benchmarks.report import Table, Target

TOPIC = "Number of points"
NUMBERS = (16, 32, 64, 128, 256, 512, 1024)


def enough_points(options: Options) -> Finding:
    """Error of the probabilities by the number of quasi-random points, and of independent draws of the weights."""
    columns = {
        "number": "points or draws",
        "points": "error, quasi-random points",
        "draws": "error, independent draws",
        "nll": "test NLL, points",
    }
    table = Table("Error of a probability (root of the mean square), digits, 240 rows", columns)
    split = split_of("digits", 240, 0)
    fit = bll.fit(split.layer(), split.train, calibration=None)
    inputs = split.test[0][:300]
    num_truth = 2**12 if options.small else 2**15
    truth = _average(
        [fit.predict(inputs, integration=bll.QuasiMonteCarlo(num_truth, seed=s)).probs for s in (101, 102)]
    )
    for number in NUMBERS:
        by_points = [
            fit.predict(inputs, integration=bll.QuasiMonteCarlo(number, seed=s)).probs for s in seeds(options)
        ]
        by_draws = [fit.draw(inputs, number, seed=s).mean(0) for s in seeds(options)]
        nll = -by_points[0].gather(-1, split.test[1][:300, None]).double().log().mean()
        table.rows.append(
            {
                "number": number,
                "points": _error(by_points, truth),
                "draws": _error(by_draws, truth),
                "nll": float(nll),
            }
        )
    at = {row["number"]: row for row in table.rows}
    target = Target(
        "error of 256 points over that of 1,024 draws", at[256]["points"] / at[1024]["draws"], 1.0
    )
    return Finding(
        TOPIC,
        "The 256 points of the default are enough",
        target,
        table,
        "points",
        lambda path: _draw(table, path),
    )


def draws_in_training(options: Options) -> Finding:
    """One draw of the outputs of each row in a step, and one draw of all weights, at the same number of steps."""
    columns = {"method": "drawn in each step", "elbo": "ELBO a row", "nll": "test NLL"}
    table = Table("Training on batches of 100, digits, 400 rows, 100 passes", columns)
    for name, output_space in (
        ("bll_pyro: outputs, once for each row (default)", True),
        ("all weights, once for the batch", False),
    ):
        found: dict[str, list[float]] = {"elbo": [], "nll": []}
        for seed in seeds(options, 2):
            split = split_of("digits", 400, seed)
            inference = bll.SVI(
                batch_size=100, num_epochs=5 if options.small else 100, output_space=output_space
            )
            fit = bll.fit(split.layer(0.5), split.train, inference=inference, calibration=None, seed=seed)
            found["elbo"].append(fit.elbo / 400)
            found["nll"].append(loss(fit, split))
        table.rows.append({"method": name, **{key: mean(values) for key, values in found.items()}})
    ours, theirs = (float(row["elbo"]) for row in table.rows)
    target = Target("ELBO a row, above that of drawn weights, nats", ours - theirs, 0.0, ">=")
    return Finding(TOPIC, "One draw for each row and step is enough in training", target, table)


def _average(many: list[Tensor]) -> Tensor:
    return torch.stack(many).double().mean(0)


def _error(many: list[Tensor], truth: Tensor) -> float:
    return math.sqrt(float((torch.stack(many).double() - truth).square().mean()))


def _draw(table: Table, path: Path) -> None:
    curves = {
        "quasi-random points (bll_pyro)": [row["points"] for row in table.rows],
        "independent draws of the weights": [row["draws"] for row in table.rows],
    }
    lines(path, NUMBERS, curves, "points or draws", "error of a probability", log_y=True)
