"""Separation of unknown (out-of-distribution) from known inputs by a score; a larger score is further out.

Only the order of the scores matters, so infinite ones are allowed. Scores are replaced by their ranks, because
scikit-learn refuses infinity.
"""

from __future__ import annotations

import numpy as np

from bll_pyro.metrics.arrays import Array, Mask, Values, checked_share, real, round_up, row_weights
from bll_pyro.scope import isolated


def auroc(known_scores: Values, unknown_scores: Values, *, sample_weight: Values | None = None) -> float:
    """Area under the ROC curve: probability that an unknown input has a larger score than a known one, ties counting half.

    Parameters
    ----------
    known_scores, unknown_scores
        `[N]` and `[M]`, larger = further out.
    sample_weight
        Weights `[N]` of the known inputs, numbers >= 0.

    Raises
    ------
    ValueError
        For empty scores, NaN, or more than one dimension.
    """
    with isolated():  # its first import draws a random number
        from sklearn.metrics import roc_auc_score

    is_unknown, ranks = _ranked(known_scores, unknown_scores)
    weights = None
    if sample_weight is not None:
        weights = np.ones(len(ranks))
        weights[~is_unknown] = row_weights(sample_weight, int((~is_unknown).sum()))
    return float(roc_auc_score(is_unknown, ranks, sample_weight=weights))


def aupr(known_scores: Values, unknown_scores: Values) -> float:
    """Average precision with the unknown inputs as the positives ("AUPR-Out").

    `sum_i (recall_i - recall_(i-1)) precision_i` over the thresholds, without interpolation (Davis and
    Goadrich 2006). An uninformative score gives M / (N + M), so values are comparable only for the same share of unknown
    inputs.

    Parameters
    ----------
    known_scores, unknown_scores
        `[N]` and `[M]`, larger = further out.

    Raises
    ------
    ValueError
        For empty scores, NaN, or more than one dimension.
    """
    with isolated():
        from sklearn.metrics import average_precision_score

    is_unknown, ranks = _ranked(known_scores, unknown_scores)
    return float(average_precision_score(is_unknown, ranks))


def fpr_at_tpr(
    known_scores: Values, unknown_scores: Values, tpr: float = 0.95, *, known_positive: bool = True
) -> float:
    """False-positive rate at a given true-positive rate ("FPR95"), in either of its two conventions.

    Parameters
    ----------
    known_scores, unknown_scores
        `[N]` and `[M]`, larger = further out.
    tpr
        Smallest true-positive rate, in (0, 1).
    known_positive
        True, the convention of the OOD literature (Liang et al. 2018): share of the unknown inputs that are
        accepted (score <= t) at the smallest threshold t that accepts at least `tpr` of the known ones.
        False: share of the known inputs that raise a false alarm (score >= t) at the largest t that detects at least
        `tpr` of the unknown ones. The two differ, so report which one is used.

    Raises
    ------
    ValueError
        For empty scores, NaN, more than one dimension, or `tpr` outside (0, 1).
    """
    is_unknown, ranks = _ranked(known_scores, unknown_scores)
    checked_share("tpr", tpr)
    positive, negative = ranks[~is_unknown], ranks[is_unknown]
    if not known_positive:
        positive, negative = -negative, -positive  # the same definition with reversed scores
    # an order statistic, not an interpolated quantile: at least `tpr` of the positives are accepted, also with ties
    threshold = np.sort(positive)[round_up(tpr * len(positive)) - 1]
    return float(np.mean(negative <= threshold))


def _ranked(known_scores: Values, unknown_scores: Values) -> tuple[Mask, Array]:
    from scipy.stats import rankdata

    known = real("known_scores", known_scores, infinite=True)
    unknown = real("unknown_scores", unknown_scores, infinite=True)
    if known.ndim != 1 or unknown.ndim != 1:
        raise ValueError(
            f"expected one score a row, shapes [N] and [M], got {known.shape} and {unknown.shape}; "
            "reduce each row to one score"
        )
    is_unknown = np.repeat([False, True], [len(known), len(unknown)])
    return is_unknown, np.asarray(rankdata(np.concatenate([known, unknown])), dtype=np.float64)
