"""A network with its head on, made Bayesian: beside the head itself, the head with a temperature, and the default fit."""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bll_pyro as bll
from benchmarks import scores
from benchmarks.data import Task, cifar_features, made_up
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_SPLITS, NUM_CALIBRATION = 10, 400
NUM_SEEN = 5  # splits whose judged images were seen in trials
HEAD, SCALED, OURS = "head", "head + temperature", "bayesianize"
COLUMNS = {
    "method": "",
    "accuracy": "accuracy",
    "nll": "NLL",
    "excess": "NLL less that of head + temperature (standard error)",
    "ece": "ECE (15)",
    "auroc": "AUROC of epistemic against MNIST",
    "entropy": "AUROC of entropy",
    "temperature": "temperature, from .. to",
    "seconds": "seconds",
}
NOTES = [
    "ResNet-20 and the CIFAR-10 subset. The network was trained on the 4,000 training images. Of the 1,000 test images, which it "
    f"has not seen, {NUM_CALIBRATION} are for calibration in each split, and the others are judged. Features come from memory: the "
    "network of these figures is its last layer on what the layers before it give.",
    "`bayesianize`: `bll.bayesianize(net, train, calibration=...)`. `new rows alone`: `bll.bayesianize(net, ...)` of the "
    f"{NUM_CALIBRATION} images, without the training images; half of them are fitted, half are for calibration.",
    "`default fit`: `bll.fit(layer, train, backbone)`, whose temperature is found on the training images. It is there to show what "
    "happens to rows that the network knows. `recalibrated`: the same after `bll.calibrate` on the calibration images.",
    "Unknown rows: 2,000 MNIST digits, grey on three channels. Epistemic is the mutual information of class and weights; a "
    "head has none.",
    "Seconds: of fit and calibration, without predictions.",
    "The prior scale, a quarter of the head's weights, was settled in trials on the Fashion-MNIST features and on splits 0 to 4 of "
    "these data, whose judged images were seen then; those of splits 5 to 9 were not, so they stand by themselves, too.",
]


def run(options: Options) -> Report:
    """Judge every method on every split."""
    num_splits = 2 if options.small else NUM_SPLITS
    if options.small:
        task = made_up(200, 8, 3, num_test_rows=600)
        network: nn.Module = trained_head(task)
    else:
        task = cifar_features()
        network = nn.Sequential(nn.Identity(), head_of(task))
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(num_splits):
        for name, scored in judged(task, network, seed).items():
            found.setdefault(name, []).append(scored)
        print(f"bayesianize: split {seed}", file=sys.stderr, flush=True)
    return report_of(found)


def report_of(found: dict[str, list[dict[str, float]]]) -> Report:
    """Tables and targets from the scores of each split."""
    num_splits = len(found[HEAD])
    tables = [table_of(f"Mean over {num_splits} splits", found, 0)]
    if num_splits > NUM_SEEN:
        tables.append(table_of(f"Splits {NUM_SEEN} to {num_splits - 1} alone", found, NUM_SEEN))
    report = Report("bayesianize", "A network that is trained already", tables, notes=NOTES)
    rows = {row["method"]: row for row in tables[0].rows}
    ours, head = rows[OURS], rows[HEAD]
    report.targets += [
        Target("accuracy less that of the head, absolute", abs(ours["accuracy"] - head["accuracy"]), 0.005),
        Target("NLL less that of head + temperature, standard errors", ours["standardised"], 1.0),
        Target("ECE", ours["ece"], 0.03),
        Target("AUROC of epistemic against MNIST", ours["auroc"], 0.96, ">="),
    ]
    return report


def head_of(task: Task) -> nn.Linear:
    """The network's own last layer."""
    assert task.head_weight is not None and task.head_bias is not None
    head = nn.Linear(task.head_weight.shape[1], task.num_classes)
    with torch.no_grad():
        head.weight.copy_(task.head_weight)
        head.bias.copy_(task.head_bias)
    return head


def trained_head(task: Task) -> nn.Module:
    """A head for made-up features."""
    head = nn.Linear(task.train_features.shape[1], task.num_classes)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    for _ in range(50):
        loss = nn.functional.cross_entropy(head(task.train_features), task.train_targets)
        for parameter, slope in zip(head.parameters(), torch.autograd.grad(loss, list(head.parameters()))):
            parameter.data.sub_(slope)
    return nn.Sequential(nn.Identity(), head)


def judged(task: Task, network: nn.Module, seed: int) -> dict[str, dict[str, float]]:
    """Scores of all methods on one split, by name."""
    inputs, labels = task.test_features, task.test_targets
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first, rest = order[:NUM_CALIBRATION], order[NUM_CALIBRATION:]
    with torch.no_grad():
        logits, unknown = network(inputs), network(task.ood_features)
    temperature = best_temperature(logits[first], labels[first])
    found = {
        name: score((logits[rest] / t).softmax(-1), labels[rest], (unknown / t).softmax(-1))
        | {"temperature": t}
        for name, t in ((HEAD, 1.0), (SCALED, temperature))
    }
    for name, make in fits(task, network, (inputs[first], labels[first]), seed).items():
        began = time.perf_counter()
        with warnings.catch_warnings():  # rows that the network knows
            warnings.simplefilter("ignore", bll.FitWarning)
            fit = make()
        seconds = time.perf_counter() - began
        known, far = fit.predict(inputs[rest]), fit.predict(task.ood_features)
        found[name] = score(known.probs, labels[rest], far.probs, known.epistemic, far.epistemic) | {
            "temperature": 1.0 if fit.recalibration is None else fit.recalibration.temperature,
            "seconds": seconds,
        }
    return found


def fits(
    task: Task, network: nn.Module, held_out: tuple[Tensor, Tensor], seed: int
) -> dict[str, Callable[[], bll.Fit]]:
    """How each Bayesian method is called."""
    train = task.train_features, task.train_targets
    backbone, _ = bll.split_last_layer(network)
    layer = bll.LastLayer(bll.likelihoods.Categorical(task.num_classes))
    return {
        "default fit": lambda: bll.fit(layer, train, backbone, seed=seed),
        "default fit, recalibrated": lambda: bll.calibrate(
            bll.fit(layer, train, backbone, seed=seed, calibration=None), held_out
        ),
        OURS: lambda: bll.bayesianize(network, train, calibration=held_out, seed=seed),
        "bayesianize, new rows alone": lambda: bll.bayesianize(network, held_out, seed=seed),
    }


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """That of the largest likelihood (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits.double() / np.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, labels))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def score(
    probs: Tensor,
    labels: Tensor,
    unknown: Tensor,
    known_epistemic: Tensor | None = None,
    epistemic: Tensor | None = None,
) -> dict[str, float]:
    """Scores of one prediction."""
    found = {
        "accuracy": scores.accuracy(probs, labels),
        "nll": scores.nll(probs, labels),
        "ece": scores.expected_calibration_error(probs, labels),
        "entropy": scores.auroc(scores.entropy(probs), scores.entropy(unknown)),
    }
    if known_epistemic is not None and epistemic is not None:
        found["auroc"] = scores.auroc(known_epistemic, epistemic)
    return found


def table_of(title: str, found: dict[str, list[dict[str, float]]], start: int) -> Table:
    """Means of the splits from ``start`` on."""
    some = {name: ones[start:] for name, ones in found.items()}
    return Table(title, dict(COLUMNS), [row_of(name, some) for name in some])


def row_of(name: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """A row of the table; every split is in the JSON file."""
    ones = found[name]
    row: dict[str, Any] = {key: float(np.mean([one[key] for one in ones])) for key in ones[0]}
    gaps = np.array([one["nll"] - other["nll"] for one, other in zip(ones, found[SCALED])])
    error = float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    temperatures = [one["temperature"] for one in ones]
    return row | {
        "method": name,
        "excess": f"{gaps.mean():+.4f} ({error:.4f})",
        "standardised": float(gaps.mean()) / error if error else 0.0,
        "temperature": f"{min(temperatures):.2f} .. {max(temperatures):.2f}",
        "splits": ones,
    }
