"""Out-of-distribution scores and detectors for several inferences, and recalibration of plain and Bayesian heads."""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import Task, cifar_features, fashion_features, made_up
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

ALPHA = 0.05  # rate of false alarms of the detectors
NUM_BINS = 15  # bins of the ECE
TRAIN_ROWS = 15_000  # most training rows for the distances


def inferences(small: bool) -> dict[str, tuple[Any, Any]]:
    """Prior and inference by name; the first is the plain head."""
    import bll_pyro as bll

    learned, unit = bll.priors.Normal(), bll.priors.Normal(scale=1.0)
    found = {
        "plain head (MAP)": (learned, bll.SVI(guide=bll.guides.MAP())),
        "bll_pyro, SVI, diagonal (default)": (learned, bll.SVI()),
        "bll_pyro, SVI, diagonal, prior scale 1": (unit, bll.SVI()),
        "bll_pyro, SVI, matrix-normal": (learned, bll.SVI(guide=bll.guides.MatrixNormal())),
        "bll_pyro, Laplace, Kronecker": (learned, bll.Laplace()),
        "bll_pyro, Laplace, Kronecker, prior scale 1": (unit, bll.Laplace()),
        "bll_pyro, Laplace, diagonal": (learned, bll.Laplace(curvature=bll.curvatures.Diagonal())),
        "bll_pyro, Laplace, diagonal, prior scale 3": (
            bll.priors.Normal(scale=3.0),
            bll.Laplace(curvature=bll.curvatures.Diagonal()),
        ),
    }
    return dict(list(found.items())[:3]) if small else found


def scores() -> dict[str, Any]:
    """Scores by name."""
    from bll_pyro import ood

    return {
        "Leverage": ood.Leverage(),
        "Epistemic": ood.Epistemic(),
        "PredictiveEntropy": ood.PredictiveEntropy(),
        "MaxProbability": ood.MaxProbability(),
        "Energy": ood.Energy(),
        "Mahalanobis": ood.Mahalanobis(),
        "RelativeMahalanobis": ood.RelativeMahalanobis(),
        "FeatureNorm": ood.FeatureNorm(),
        "Leverage + Epistemic": ood.Combination((ood.Leverage(), ood.Epistemic())),
    }


def fits(task: Task, options: Options) -> Iterator[tuple[str, int, Any]]:
    """Fits of every inference with every seed; Laplace is deterministic, so one fit is used for all seeds."""
    import bll_pyro as bll

    data = (task.train_features, task.train_targets)
    for name, (prior, inference) in inferences(options.small).items():
        layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=task.num_classes), prior=prior)
        fit = None
        for seed in range(options.num_runs):
            if fit is None or isinstance(inference, bll.SVI):
                fit = bll.fit(layer, data, inference=inference, seed=seed)
            yield name, seed, fit


def scored(fit: Any, task: Task, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores of all test rows and of all unknown rows, by name; outputs and predictions are computed once."""
    from bll_pyro.ood import View

    step = max(1, len(task.train_features) // TRAIN_ROWS)
    train, targets = task.train_features[::step], task.train_targets[::step]
    seen, known, unknown = (
        View(rows, fit.posterior) for rows in (train, task.test_features, task.ood_features)
    )
    found = {}
    for name in names:
        score = scores()[name].fitted(fit.posterior, train, targets, lambda other: other.of(seen))
        found[name] = (score.of(known), score.of(unknown))
    return found


def judge(known: Tensor, unknown: Tensor, seed: int) -> dict[str, float]:
    """Separation of unknown from all test rows; and the alarms of a detector calibrated on half of the test rows."""
    import bll_pyro as bll

    first, second = halves(len(known), seed)
    detector = bll.ood.Detector(
        alpha=ALPHA, calibration_scores=known[first].sort().values, fingerprint="of this fit"
    )
    return {
        "auroc": bll.metrics.auroc(known, unknown),
        "fpr95": bll.metrics.fpr_at_tpr(known, unknown),
        "fpr95_alarm": bll.metrics.fpr_at_tpr(known, unknown, known_positive=False),
        "false_alarms": detector.judge(known[second]).is_ood.double().mean().item(),
        "caught": detector.judge(unknown).is_ood.double().mean().item(),
    }


def recalibrate(fit: Any, task: Task, seed: int) -> dict[str, float]:
    """NLL and ECE on half of the test rows, before and after calibration on the other half."""
    import bll_pyro as bll

    first, second = halves(len(task.test_features), seed)
    after = bll.calibrate(fit, task.test_features[first], task.test_targets[first])
    inputs, targets = task.test_features[second], task.test_targets[second]
    found = {"temperature": after.recalibration.temperature}
    for name, one in {"before": fit, "after": after}.items():
        prediction = one.predict(inputs)
        found[f"nll_{name}"] = -float(prediction.log_prob(targets).double().mean())
        found[f"ece_{name}"] = bll.metrics.ece(prediction.probs, targets, NUM_BINS)
        found[f"ece_mass_{name}"] = bll.metrics.ece(prediction.probs, targets, NUM_BINS, equal_mass=True)
    return found


def halves(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of the rows."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2], order[num_rows // 2 :]


def tables_of(task: Task, options: Options) -> list[Table]:
    """All that is measured on one task."""
    separation: dict[tuple[str, str], list[dict[str, float]]] = {}
    calibration: dict[str, list[dict[str, float]]] = {}
    last, found = None, {}
    for name, seed, fit in fits(task, options):
        calibration.setdefault(name, []).append(recalibrate(fit, task, seed))
        if fit is not last:
            # a point estimate has no spread
            spreads = not name.startswith("plain")
            labels = [n for n in scores() if spreads or not ("Leverage" in n or "Epistemic" in n)]
            last, found = fit, scored(fit, task, labels)
        for label, (known, unknown) in found.items():
            separation.setdefault((name, label), []).append(judge(known, unknown, seed))
        print(f"{task.name}: {name}, seed {seed}", file=sys.stderr, flush=True)
    names = list(scores())
    return [
        crossed(f"AUROC, {task.name}", separation, names, "auroc"),
        crossed(f"FPR95, {task.name}", separation, names, "fpr95"),
        crossed(f"FPR95 in the alarm's view, {task.name}", separation, names, "fpr95_alarm"),
        crossed(f"False alarms at alpha = {ALPHA}, {task.name}", separation, names, "false_alarms"),
        crossed(f"Unknown rows caught at alpha = {ALPHA}, {task.name}", separation, names, "caught"),
        calibration_table(task, calibration),
    ]


def crossed(
    title: str, found: dict[tuple[str, str], list[dict[str, float]]], names: list[str], key: str
) -> Table:
    """Inferences down, scores across; medians over the seeds, and every seed in the JSON file."""
    table = Table(title, {"method": "method"} | {name: name for name in names})
    for inference in dict.fromkeys(name for name, _ in found):
        rounds = {name: [one[key] for one in found.get((inference, name), [])] for name in names}
        row: dict[str, Any] = {
            name: float(np.median(values)) if values else None for name, values in rounds.items()
        }
        table.rows.append(row | {"method": inference, "rounds": rounds})
    return table


def calibration_table(task: Task, found: dict[str, list[dict[str, float]]]) -> Table:
    """NLL and ECE, medians over the seeds."""
    columns = {
        "method": "method",
        "nll_before": "NLL",
        "nll_after": "NLL, calibrated",
        "ece_before": "ECE",
        "ece_after": "ECE, calibrated",
        "ece_mass_before": "ECE, equal mass",
        "ece_mass_after": "ECE, equal mass, calibrated",
        "temperature": "temperature",
    }
    table = Table(f"Recalibration, {task.name}", columns)
    for name, rounds in found.items():
        row: dict[str, Any] = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        table.rows.append(row | {"method": name, "rounds": rounds})
    return table


def best(table: Table, names: list[str], choose: Callable[..., float]) -> float | None:
    """Best median in some columns."""
    values = [row[name] for row in table.rows for name in names if row.get(name) is not None]
    values = [value for value in values if not math.isnan(value)]
    return choose(values) if values else None


def run(options: Options) -> Report:
    """Measure on both tasks; on a small made-up one in a small run."""
    report = Report("ood", "Unknown inputs, and recalibration")
    tasks = (
        [made_up(600, 8, 3, num_test_rows=200)] if options.small else [cifar_features(), fashion_features()]
    )
    single = [name for name in scores() if "+" not in name]
    for task in tasks:
        tables = tables_of(task, options)
        report.tables += tables
        what = task.name.split(" (")[0]
        report.targets += [
            Target(f"{what}: AUROC of the best single score", best(tables[0], single, max), 0.995, ">="),
            Target(f"{what}: FPR95 of the best single score", best(tables[1], single, min), 0.02),
            Target(
                f"{what}: AUROC of Epistemic, best inference", best(tables[0], ["Epistemic"], max), 0.96, ">="
            ),
        ]
    report.notes += [
        "Unknown rows are MNIST digits through the same network. Medians over the seeds; a seed decides the variational fit "
        "and the split of the test rows into a half for calibration and a half for judging. Laplace has nothing random.",
        "FPR95 has the convention of the literature: share of unknown rows that pass where 95 % of the known rows pass. In the "
        "alarm's view: share of known rows that raise an alarm where 95 % of the unknown rows do.",
        "Leverage is the log of the geometric mean, over the outputs, of the output's variance under the posterior.",
        f"Mahalanobis and the scales of the combination see at most {TRAIN_ROWS:,} training rows.",
        "The ResNet-20 was trained on the training images whose features the last layer sees here; they are too good. The "
        "test rows are new to it.",
        "NLL and ECE: on the half of the test rows that calibration did not see; 15 bins.",
    ]
    return report
