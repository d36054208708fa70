"""Measures of kept predictions: no fit is needed for a new one. Smaller is better unless the name is in ``LARGER``."""

import numpy as np
import torch

from benchmarks import scores
from benchmarks.suite.predictions import LEVELS
from benchmarks.suite.splits import CLASSES, Split

ALPHA = 0.05  # stated rate of false alarms
LARGER = frozenset({"accuracy", "auroc_near", "auroc_far", "caught_near", "caught_far"})
FAR_PARTS = ("near", "far")
Arrays = dict[str, np.ndarray]


def measured(arrays: Arrays, split: Split) -> dict[str, float]:
    """Every measure of the kept predictions of a split."""
    if split.kind == CLASSES:
        return of_classes(arrays, split.test_targets) | of_alarms(arrays)
    return of_values(arrays, split.test_targets)


def of_classes(arrays: Arrays, targets: np.ndarray) -> dict[str, float]:
    """NLL, accuracy, ECE and Brier score of test rows."""
    probs, labels = torch.from_numpy(arrays["probs_test"]).double(), torch.from_numpy(targets)
    hit = torch.nn.functional.one_hot(labels, probs.shape[1])
    return {
        "nll": scores.nll(probs, labels),
        "accuracy": scores.accuracy(probs, labels),
        "ece": scores.expected_calibration_error(probs, labels),
        "brier": float((probs - hit).square().sum(-1).mean()),
    }


def of_values(arrays: Arrays, targets: np.ndarray) -> dict[str, float]:
    """NLL, RMSE, CRPS, and by how much the share of targets inside 90% intervals is off.

    ``coverage`` is that share itself. Its standard error on few test rows is large, so ``miscoverage`` is judged only as a
    mean over splits.
    """
    values = targets.astype(np.float64)
    low, high = (arrays["quantiles"][np.argmin(np.abs(LEVELS - level))] for level in (0.05, 0.95))
    return {
        "nll": -float(arrays["log_prob"].mean()),
        "rmse": float(np.sqrt(np.square(arrays["mean"] - values).mean())),
        "crps": float(arrays["crps"].mean()),
        "coverage": float(((low <= values) & (values <= high)).mean()),
        "width": float((high - low).mean()),
    }


def own_score(arrays: Arrays, part: str) -> np.ndarray:
    """The method's own score of how unknown rows are; the entropy of its probabilities where it has none."""
    name = f"unknown_{part}"
    return arrays[name] if name in arrays else entropy(arrays, part)


def entropy(arrays: Arrays, part: str) -> np.ndarray:
    """Entropy of the probabilities ``[N]``, nats."""
    found: np.ndarray = scores.entropy(torch.from_numpy(arrays[f"probs_{part}"]).double()).numpy()
    return found


def of_alarms(arrays: Arrays) -> dict[str, float]:
    """AUROC, FPR95, and what alarms catch, by the method's own score and by entropy.

    A threshold comes from known rows that were kept aside, by the rule of split conformal prediction: an alarm is a row whose
    p-value, ``(1 + number of kept rows that score as high) / (1 + number of kept rows)``, is at most ``ALPHA``.
    """
    found = {}
    for suffix, score in (("", own_score), ("_entropy", entropy)):
        kept, known = score(arrays, "kept"), score(arrays, "test")
        found[f"false_alarms{suffix}"] = float((p_values(kept, known) <= ALPHA).mean())
        for part in FAR_PARTS:
            unknown = score(arrays, part)
            found[f"auroc_{part}{suffix}"] = scores.auroc(
                torch.from_numpy(known).double(), torch.from_numpy(unknown).double()
            )
            found[f"fpr95_{part}{suffix}"] = fpr95(known, unknown)
            found[f"caught_{part}{suffix}"] = float((p_values(kept, unknown) <= ALPHA).mean())
    return found


def p_values(kept: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Conformal p-values ``[N]`` of rows, by the scores of the rows kept aside."""
    ordered = np.sort(kept)
    num_as_high = len(ordered) - np.searchsorted(ordered, rows, side="left")
    found: np.ndarray = (1.0 + num_as_high) / (1.0 + len(ordered))
    return found


def fpr95(known: np.ndarray, unknown: np.ndarray) -> float:
    """Share of unknown rows that pass as known where 95% of the known rows do.

    The threshold is the least score under which 95% of the known rows lie; known rows are the positive ones, as in
    OpenOOD.
    """
    threshold = np.quantile(known, 0.95, method="inverted_cdf")
    return float((unknown <= threshold).mean())
