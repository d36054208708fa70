"""Scores of rows and the default detector, judged on known and unknown rows."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Task

ALPHA = 0.05  # rate of false alarms of the detectors
TRAIN_ROWS = 15_000  # most training rows for the scores that learn from some


def scores() -> dict[str, Any]:
    """Scores by name."""
    from bll_pyro import ood

    return {
        "Leverage": ood.Leverage(),
        "Leverage, raw": ood.Leverage(normalize=False),
        "Epistemic": ood.Epistemic(),
        "PredictiveEntropy": ood.PredictiveEntropy(),
        "MaxProbability": ood.MaxProbability(),
        "Energy": ood.Energy(),
        "Mahalanobis": ood.Mahalanobis(),
        "Mahalanobis, raw": ood.Mahalanobis(normalize=False),
        "RelativeMahalanobis": ood.RelativeMahalanobis(),
        "RelativeMahalanobis, raw": ood.RelativeMahalanobis(normalize=False),
        "KNearestNeighbours": ood.KNearestNeighbours(),
        "NearestGroup": ood.NearestGroup(),
        "ViM": ood.ViM(),
        "FeatureNorm": ood.FeatureNorm(),
        "Length": ood.Length(),
        "Leverage + Epistemic": ood.Combination((ood.Leverage(), ood.Epistemic())),
    }


def training_rows(task: Task) -> tuple[Tensor, Tensor]:
    """The training rows for the scores that need some."""
    step = max(1, len(task.train_features) // TRAIN_ROWS)
    return task.train_features[::step], task.train_targets[::step]


def scored(fit: Any, task: Task, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores of all test rows and of all unknown rows, by name; outputs and predictions are computed once."""
    from bll_pyro.ood import View

    train, targets = training_rows(task)
    seen, known, unknown = (
        View(rows, fit.posterior) for rows in (train, task.test_features, task.ood_features)
    )
    found = {}
    for name in names:
        score = scores()[name].fitted(fit.posterior, train, targets, lambda other: other.of(seen))
        found[name] = (score.of(known), score.of(unknown))
    return found


def judge_default(fit: Any, task: Task, seed: int) -> dict[str, float]:
    """A detector without a score: calibrated on half of the test rows, judged on the other half and the unknown rows."""
    import bll_pyro as bll

    first, second = halves(len(task.test_features), seed)
    detector = bll.ood.Detector(alpha=ALPHA)
    detector = detector.calibrate(fit, task.test_features[first], train=training_rows(task))
    known, unknown = (detector.detect(rows) for rows in (task.test_features[second], task.ood_features))
    return {
        "auroc": bll.metrics.auroc(known.score, unknown.score),
        "fpr95": bll.metrics.fpr_at_tpr(known.score, unknown.score),
        "fpr95_alarm": bll.metrics.fpr_at_tpr(known.score, unknown.score, known_positive=False),
        "false_alarms": known.is_ood.double().mean().item(),
        "caught": unknown.is_ood.double().mean().item(),
    }


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


def halves(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of the rows."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2], order[num_rows // 2 :]
