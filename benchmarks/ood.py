"""Out-of-distribution scores and detectors for several inferences, and recalibration of plain and Bayesian heads."""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.data import (
    Task,
    cifar_features,
    clinc_features,
    fashion_features,
    made_up,
    without_classes,
)
from benchmarks.ood_scores import ALPHA, TRAIN_ROWS, halves, judge, judge_default, scored, scores
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_BINS = 15  # bins of the ECE
DEFAULT = "default, chosen without unknown rows"
USUAL = "bll_pyro, SVI, diagonal (default)"
NOTES = [
    "The default is `bll.ood.Detector()`: calibrated on half of the test rows (of which 500 or fewer give the p-values of "
    "its parts), judged on the other half. How its parts and their weight were chosen, and on which tasks, is in decision 12: "
    "no task of this table was kept aside.",
    "Unknown rows are MNIST digits through the same network, queries of no intent, or classes that the last layer has not "
    "seen (their network has). Medians over the seeds; a seed decides the variational fit and the split of the test rows into a "
    "half for calibration and a half for judging. Laplace has nothing random.",
    "FPR95 has the convention of the literature: share of unknown rows that pass where 95 % of the known rows pass. In the "
    "alarm's view: share of known rows that raise an alarm where 95 % of the unknown rows do.",
    "Scores called raw see features as they are standardised in the fit; the others see rows of unit length "
    "(`normalize=True`). Leverage is the log of the geometric mean, over the outputs, of the output's variance.",
    f"Scores that learn from training rows see at most {TRAIN_ROWS:,} of them.",
    "The ResNet-20 was trained on the training images whose features the last layer sees here; they are too good. The "
    "test rows are new to it.",
    "NLL and ECE: on the half of the test rows that calibration did not see; 15 bins.",
]


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


def fits(task: Task, options: Options, only: str = "") -> Iterator[tuple[str, int, Any]]:
    """Fits of every inference with every seed, or of one; Laplace is deterministic, so one fit is used for all seeds."""
    import bll_pyro as bll

    data = (task.train_features, task.train_targets)
    for name, (prior, inference) in inferences(options.small).items():
        if only not in name:
            continue
        layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=task.num_classes), prior=prior)
        fit = None
        for seed in range(options.num_runs):
            if fit is None or isinstance(inference, bll.SVI):
                fit = bll.fit(layer, data, inference=inference, seed=seed)
            yield name, seed, fit


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


Separation = dict[tuple[str, str], list[dict[str, float]]]  # rounds by names of inference and score


def separation_of(
    task: Task, options: Options, only: str = ""
) -> tuple[Separation, dict[str, list[dict[str, float]]]]:
    """How each score of each fit separates, and with all inferences what recalibration gives."""
    separation: Separation = {}
    calibration: dict[str, list[dict[str, float]]] = {}
    last, found = None, {}
    for name, seed, fit in fits(task, options, only):
        if not only:
            calibration.setdefault(name, []).append(recalibrate(fit, task, seed))
        separation.setdefault((name, DEFAULT), []).append(judge_default(fit, task, seed))
        if fit is not last:
            # a point estimate has no spread
            spreads = not name.startswith("plain")
            labels = [n for n in scores() if spreads or not ("Leverage" in n or "Epistemic" in n)]
            last, found = fit, scored(fit, task, labels)
        for label, (known, unknown) in found.items():
            separation.setdefault((name, label), []).append(judge(known, unknown, seed))
        print(f"{task.name}: {name}, seed {seed}", file=sys.stderr, flush=True)
    return separation, calibration


def tables_of(
    task: Task, separation: Separation, calibration: dict[str, list[dict[str, float]]]
) -> list[Table]:
    """All that is measured on one task with all inferences."""
    names = [DEFAULT, *scores()]
    return [
        crossed(f"AUROC, {task.name}", separation, names, "auroc"),
        crossed(f"FPR95, {task.name}", separation, names, "fpr95"),
        crossed(f"FPR95 in the alarm's view, {task.name}", separation, names, "fpr95_alarm"),
        crossed(f"False alarms at alpha = {ALPHA}, {task.name}", separation, names, "false_alarms"),
        crossed(f"Unknown rows caught at alpha = {ALPHA}, {task.name}", separation, names, "caught"),
        calibration_table(task, calibration),
    ]


def by_task(title: str, found: dict[str, Separation], key: str, worst: Callable[..., float]) -> Table:
    """Scores down, tasks across, for the default fit; the last column is the worst task of each score."""
    table = Table(title, {"score": "score"} | {task: task for task in found} | {"worst": "worst"})
    for name in (DEFAULT, *scores()):
        rounds = {task: [one[key] for one in values[USUAL, name]] for task, values in found.items()}
        row: dict[str, Any] = {task: float(np.median(values)) for task, values in rounds.items()}
        table.rows.append(row | {"score": name, "worst": worst(row.values()), "rounds": rounds})
    return table


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


def all_tasks(small: bool) -> tuple[list[Task], list[Task]]:
    """Tasks for all inferences, and others for the default one; made-up ones in a small run."""
    if small:
        task = made_up(600, 8, 3, num_test_rows=200)
        return [task], [without_classes(task, (2,))]
    cifar, fashion = cifar_features(), fashion_features()
    pairs = ((3, 5), (4, 9))
    near = [without_classes(task, pair) for task in (cifar, fashion) for pair in pairs]
    return [cifar, fashion], [*near, clinc_features()]


def run(options: Options) -> Report:
    """Measure on all tasks; the first tables are for the default fit, scores down and tasks across."""
    report = Report("ood", "Unknown inputs, and recalibration")
    full, others = all_tasks(options.small)
    single = [name for name in scores() if "+" not in name]
    found, tables = {}, []
    for task in full + others:
        what = task.name.split(" (")[0]
        separation, calibration = separation_of(task, options, "" if task in full else USUAL)
        found[what] = separation
        if task not in full:
            continue
        own = tables_of(task, separation, calibration)
        tables += own
        report.targets += [
            Target(f"{what}: AUROC of the best single score", best(own[0], single, max), 0.995, ">="),
            Target(f"{what}: FPR95 of the best single score", best(own[1], single, min), 0.02),
            Target(
                f"{what}: AUROC of Epistemic, best inference", best(own[0], ["Epistemic"], max), 0.96, ">="
            ),
        ]
    report.tables = [
        by_task("AUROC of the default fit", found, "auroc", min),
        by_task(f"Unknown rows caught at alpha = {ALPHA}, default fit", found, "caught", min),
        by_task(f"False alarms at alpha = {ALPHA}, default fit", found, "false_alarms", max),
        *tables,
    ]
    report.targets = [*default_targets(report.tables[0]), *report.targets]
    report.notes += NOTES
    return report


def default_targets(table: Table) -> list[Target]:
    """Limits of the default detector, from its AUROC by task; in a small run there is nothing to hold it to."""
    default, *others = table.rows
    single = [row for row in others if "+" not in row["score"]]
    limits = {"CIFAR-10 features of a ResNet-20": 0.99, "Fashion-MNIST features": 0.985}
    targets = [
        Target(f"{what}: AUROC of the default detector", default[what], limit, ">=")
        for what, limit in limits.items()
        if what in default
    ]
    what = "CLINC150 queries"
    if what in default:
        short = max(row[what] for row in single) - default[what]
        targets.append(Target(f"{what}: AUROC of the best single score minus the default's", short, 0.01))
    return targets
