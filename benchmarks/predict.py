"""Time and error of predictions: 10,000 rows, 512 features, 10 classes.

Every method predicts from its own posterior, and its error is against that same posterior: the root mean square, over
rows and classes, of the difference from class probabilities averaged over 100,000 draws. The draws are of the weights,
never of the outputs, so that a method whose prediction works in output space is not judged by its own means."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import bll_pyro
from benchmarks import ours
from benchmarks.competitors import handwritten, laplace_torch, plain_pyro
from benchmarks.competitors.map_head import map_by_adam
from benchmarks.data import Task, made_up
from benchmarks.harness import interleave, ratio, repeated_for
from benchmarks.method import ClassPrediction
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_TRAIN = 10_000  # training rows
NUM_EPOCHS = 60  # epochs of plain Pyro in batches of 512: about as many steps as in the other benchmarks
NUM_ERROR_ROWS = 500  # rows on which errors are measured
NUM_REFERENCE_DRAWS = 100_000  # draws of the weights for the reference probabilities
HEAD = "one softmax head, no uncertainty"
PYRO = "plain Pyro, Predictive, 100 draws"
OURS = {256: "bll_pyro, decomposition, 256 points (default)", 128: "bll_pyro, decomposition, 128 points"}
COLUMNS = {
    "method": "method",
    "milliseconds": "ms",
    "over_head": "over one softmax head (quartiles)",
    "rmse": "RMS error of the probabilities",
}


Reference = Callable[[Tensor, int], Tensor]
"""Class probabilities of rows, averaged over a number of draws of the weights."""


@dataclass(frozen=True)
class Entry:
    """A fitted method: its prediction, and its reference by many draws of the weights."""

    predict: Callable[[Tensor], ClassPrediction]
    reference: Reference | None = None


def mean_field_reference(mean: Tensor, scale: Tensor, bias_mean: Tensor, bias_scale: Tensor) -> Reference:
    """Average over draws of independent Normal weights ``[K, D]`` and biases ``[K]``."""

    def reference(rows: Tensor, num_draws: int, chunk: int = 100) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros(len(rows), len(mean), dtype=torch.float64)
        for start in range(0, num_draws, chunk):
            size = min(chunk, num_draws - start)
            weight = torch.addcmul(mean, scale, torch.randn(size, *mean.shape, generator=generator))
            bias = torch.addcmul(
                bias_mean, bias_scale, torch.randn(size, *bias_mean.shape, generator=generator)
            )
            total += (rows @ weight.mT + bias[:, None]).softmax(-1).sum(0, dtype=torch.float64)
        return total / num_draws

    return reference


def laplace_reference(approximation: Any, num_classes: int) -> Reference:
    """Average over laplace-torch's own draws of the weights, weight first and bias last in one vector."""

    def reference(rows: Tensor, num_draws: int, chunk: int = 100) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros(len(rows), num_classes, dtype=torch.float64)
        for start in range(0, num_draws, chunk):
            drawn = approximation.sample(min(chunk, num_draws - start), generator)
            weight = drawn[:, :-num_classes].reshape(len(drawn), num_classes, -1)
            total += (
                (rows @ weight.mT + drawn[:, None, -num_classes:]).softmax(-1).sum(0, dtype=torch.float64)
            )
        return total / num_draws

    return reference


def entries(task: Task, options: Options) -> tuple[dict[str, Entry], list[str]]:
    """Fit every method that was asked for; also name those that are not installed."""
    data = (task.train_features, task.train_targets, task.num_classes)
    weight, bias = map_by_adam(*data, 0, num_epochs=NUM_EPOCHS)
    made = {HEAD: Entry(lambda rows: ClassPrediction(functional.linear(rows, weight, bias).softmax(-1)))}
    left_out = []
    if options.keeps("hand-written"):
        layer = handwritten.train(*data, 0, num_epochs=NUM_EPOCHS)
        made["hand-written, 100 draws of outputs"] = Entry(
            layer.predict,
            mean_field_reference(
                layer.mean.detach(),
                (0.5 * layer.log_variance.detach()).exp(),
                layer.bias_mean.detach(),
                (0.5 * layer.bias_log_variance.detach()).exp(),
            ),
        )
    if options.keeps(PYRO):
        guide, predict = plain_pyro.train(*data, 0, num_epochs=NUM_EPOCHS)
        loc, scale = guide.loc.detach(), guide.scale.detach()
        split = task.num_classes * task.train_features.shape[1]
        shape = (task.num_classes, task.train_features.shape[1])
        reference = mean_field_reference(
            loc[:split].view(shape), scale[:split].view(shape), loc[split:], scale[split:]
        )
        made[PYRO] = Entry(predict, reference)
        made["plain Pyro, Predictive(parallel=True), 100 draws"] = Entry(
            lambda rows: predict(rows, parallel=True), reference
        )
    laplace = "laplace-torch, Kronecker"
    if options.keeps(laplace) and laplace_torch.METHODS[0].is_available:
        approximation, by_draws = laplace_torch.train(*data, 0, link="mc", tune=False)
        reference = laplace_reference(approximation, task.num_classes)
        made[f"{laplace}, 100 draws of outputs"] = Entry(by_draws, reference)
        by_probit = laplace_torch.prediction(approximation, "kron", "probit")
        made[f"{laplace}, probit"] = Entry(by_probit, reference)
    elif options.keeps(laplace):
        left_out.append(laplace)
    if options.keeps("bll_pyro"):
        fitted = ours.fit_object(*data, 0)

        def reference(rows: Tensor, draws: int) -> Tensor:
            return ours.weight_draw_probs(fitted, rows, draws)

        def predict_ours(rows: Tensor, num_points: int) -> ClassPrediction:
            prediction = fitted.predict(rows, integration=bll_pyro.QuasiMonteCarlo(num_points))
            return ClassPrediction(prediction.probs, prediction.epistemic)

        for num_points, name in OURS.items():
            made[name] = Entry(partial(predict_ours, num_points=num_points), reference)
    return made, left_out


def run(options: Options) -> Report:
    """Time all predictions in interleaved rounds, then measure their errors on some of the rows."""
    num_rows, num_features = (200, 16) if options.small else (10_000, 512)
    num_draws = 200 if options.small else NUM_REFERENCE_DRAWS
    task = made_up(500 if options.small else NUM_TRAIN, num_features, 10, num_test_rows=num_rows)
    rows = task.test_features
    made, left_out = entries(task, options)
    # blocks of successive calls for all methods, so that none has to allocate memory that another one has freed
    block = 0.01 if options.small else 0.2
    measures = {name: repeated_for(_call(entry, rows), block) for name, entry in made.items()}
    timings = interleave(measures, options.num_runs)
    table = Table(f"{num_rows:,} rows, D = {num_features}, K = 10", COLUMNS)
    some = rows[:NUM_ERROR_ROWS]
    errors: dict[str, float] = {}
    answers: dict[Reference, Tensor] = {}  # methods that predict from one posterior share its reference
    for name, entry in made.items():
        if entry.reference is not None:
            if entry.reference not in answers:
                answers[entry.reference] = entry.reference(some, num_draws)
            difference = entry.predict(some).probs.double() - answers[entry.reference]
            errors[name] = difference.square().mean().sqrt().item()
        table.rows.append(
            {
                "method": name,
                "milliseconds": 1e3 * timings[name].median,
                "over_head": ratio(timings[name], timings[HEAD]),
                "rmse": errors.get(name),
                "seconds": timings[name].seconds,
            }
        )
    report = Report("predict", "Prediction: time and error", [table])
    for name in OURS.values():
        if name not in timings:
            continue
        report.targets.append(Target(f"{name}: RMS error of the probabilities", errors[name], 1e-3))
        if PYRO in timings:
            faster = ratio(timings[PYRO], timings[name]).median
            report.targets.append(Target(f"plain Pyro's Predictive over {name}", faster, 10, ">="))
        over_head = ratio(timings[name], timings[HEAD]).median
        report.targets.append(Target(f"{name} over one softmax head", over_head, 25))
    report.notes.append(
        f"Errors on {len(some):,} of the rows against {num_draws:,} draws of the weights, whose own Monte-Carlo error "
        f"is at most {0.5 / num_draws**0.5:.1e} for any one probability."
    )
    if left_out:
        report.notes.append(f"Not installed, left out: {', '.join(left_out)}.")
    return report


def _call(entry: Entry, rows: Tensor) -> Callable[[], ClassPrediction]:
    return lambda: entry.predict(rows)
