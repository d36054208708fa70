"""Which rows a score learns from, and which are left for the threshold of its detector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.features.store import Features
from bll_pyro.metrics.arrays import ROUNDING
from bll_pyro.ood.base import Score
from bll_pyro.prediction import ClassPrediction, OrdinalPrediction, predict
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

MOST_REFERENCE = 500  # more reference rows make no p-value better, and the threshold needs them
SUSPICIOUS = 0.1  # share of known rows beyond which equal training rows are no coincidence
ONE_EACH = "scores are of the inputs alone, and each row counts once: pass the inputs without it"
Scorer = Callable[["Fit", Score, Features], Tensor]


@dataclass(frozen=True)
class LearnedScore:
    """A score that has learned, the known rows that are left, and how many went where (None if all were left)."""

    score: Score
    rows: Features
    split: dict[str, int] | None


def learned(
    fit: Fit, score: Score, known: Features, train: Any, alpha: float, score_rows: Scorer
) -> LearnedScore:
    """The score with its statistics of training and reference rows, and the other known rows.

    Training rows are ``train``, or else a half of the known rows with the labels that the fit predicts; reference rows are a
    half of the known rows that remain, 500 at most. The halves are random with a fixed seed, so that what is left is
    exchangeable with new rows.
    """
    takes_half = score.needs_training_rows and train is None
    num_halves = int(takes_half) + int(score.needs_reference_rows)
    _check_number(len(known), alpha, num_halves, takes_half)
    order = torch.randperm(len(known), generator=generator(0)) if num_halves else torch.arange(len(known))
    split: dict[str, int] = {}
    if score.needs_training_rows:
        if train is None:
            chosen, order = order.tensor_split([len(order) // 2])
            split["training rows"] = len(chosen)
            features, targets = known[chosen], None
        else:
            rows = fit.rows(train, what="train")
            rows.columns.refused("Detector.calibrate(train=...)", ONE_EACH, ONE_EACH)
            features, targets = rows.features, rows.targets
            _warn_of_copies(known[:], features)
        score = _fitted(fit, score, features, targets, score_rows)
    if score.needs_reference_rows:
        chosen, order = order.tensor_split([min(len(order) // 2, MOST_REFERENCE)])
        split["reference rows"] = len(chosen)
        reference = Features.from_tensors(known[chosen])
        score = score.referenced(lambda part: score_rows(fit, part, reference))
    if not split:
        return LearnedScore(score, known, None)
    return LearnedScore(score, Features.from_tensors(known[order]), {**split, "threshold": len(order)})


def least_rows(alpha: float, num_halves: int) -> int:
    """How many known rows a threshold needs, where before that the half of the rows is taken so many times."""
    return math.ceil((1 - ROUNDING) / alpha) * 2**num_halves


def _check_number(num_rows: int, alpha: float, num_halves: int, takes_half: bool) -> None:
    least = least_rows(alpha, num_halves)
    if num_rows >= least:
        return
    why = "with fewer rows no p-value is small enough: add known rows or raise alpha"
    if num_halves:
        uses = ["for training rows"] * takes_half + ["for reference rows"] * (num_halves - takes_half)
        why = f"{' and '.join(uses)} half of the rows that are there is taken, and {why}"
        why += (
            ", or pass train=(inputs, targets)" * takes_half + ", or name a score such as bll.ood.Leverage()"
        )
    factor = f"{2**num_halves}/alpha" if num_halves else "1/alpha"
    raise ValueError(
        f"Detector.calibrate: expected at least {factor} = {least} rows for alpha={alpha:g}, got {num_rows}; "
        f"{why}"
    )


def _fitted(fit: Fit, score: Score, features: Tensor, targets: Tensor | None, score_rows: Scorer) -> Score:
    """The score with its statistics of training rows; without targets, with the classes that the fit predicts."""
    if targets is None:
        prediction = predict(fit.posterior, features, recalibration=fit.recalibration)
        if isinstance(prediction, ClassPrediction | OrdinalPrediction):
            targets = prediction.probs.argmax(-1)
        else:
            targets = features.new_zeros(len(features))
    own = Features.from_tensors(features)
    return score.fitted(fit.posterior, features, targets, lambda part: score_rows(fit, part, own))


def _warn_of_copies(known: Shaped[Tensor, "N D"], train: Shaped[Tensor, "M D"]) -> None:
    """Warn if known rows are training rows, by their features; not where copies are as common within the training rows."""
    rows, train_rows = _as_bytes(known), _as_bytes(train)
    kinds, counts = np.unique(train_rows, return_counts=True)
    copied = float(np.isin(rows, kinds).mean())
    usual = float(counts[counts > 1].sum() / len(train_rows))
    if copied <= usual + SUSPICIOUS:
        return
    warnings.warn(
        f"Detector.calibrate: expected known rows that nothing was trained on, got {copied:.0%} with the features of a row of "
        "train; known rows would seem less strange than new ones and false alarms be more than alpha: calibrate on held-out rows",
        RuntimeWarning,
        stacklevel=2,
    )


def _as_bytes(rows: Tensor) -> NDArray[Any]:
    """Each row as one value that can be sorted and compared."""
    values = np.ascontiguousarray(rows.detach().float().cpu().numpy() + 0.0)  # -0.0 becomes 0.0
    return values.view(np.dtype((np.void, values.dtype.itemsize * values.shape[1])))[:, 0]
