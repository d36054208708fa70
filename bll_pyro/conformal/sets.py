"""Conformal sets of classes: a score for every class of every row, and the classes at or below the threshold.

Use: `scores = lac_scores(probs)` and `threshold = conformal_quantile(own_scores(scores, targets), alpha)` on
calibration rows, then `prediction_sets(lac_scores(new_probs), threshold)` on new rows. The sets contain the true
class with probability at least `1 - alpha`, marginally over rows, not conditionally on the class.
"""

from __future__ import annotations

import numpy as np
import torch

from bll_pyro.metrics.arrays import Array, Mask, Values, checked_class_probs, class_targets, real


def lac_scores(probs: Values) -> Array:
    """Scores of the least ambiguous sets (Sadinle et al. 2019): `1 - p_k`, `[N, K]`.

    The smallest sets on average; a row may get an empty one.

    Parameters
    ----------
    probs
        Class probabilities `[N, K]`.

    Raises
    ------
    ValueError
        For shapes other than `[N, K]`, NaN, or rows that don't sum to 1.
    """
    return 1 - checked_class_probs("probs", probs)


def aps_scores(probs: Values, generator: torch.Generator | None = None) -> Array:
    """Scores of the adaptive sets (Romano et al. 2020), `[N, K]`.

    `sum of p_j over the classes more probable than k, + u p_k`. Sets are larger for rows that are harder to classify.
    With a generator u is uniform, one draw per row, as in the paper. Without one `u = 1`: nothing is random, but a row
    whose largest probability is above the threshold gets an empty set unless `prediction_sets` forbids it.
    Use the same choice for calibration rows and new rows.

    Parameters
    ----------
    probs
        Class probabilities `[N, K]`; classes of equal probability are ranked by their number.
    generator
        Source of u, or None for `u = 1`; the global random state is not touched.

    Raises
    ------
    ValueError
        For shapes other than `[N, K]`, NaN, or rows that don't sum to 1.
    """
    p = checked_class_probs("probs", probs)
    u = np.ones((len(p), 1))
    if generator is not None:
        drawn = torch.rand(u.shape, generator=generator, dtype=torch.float64, device=generator.device)
        u = drawn.cpu().numpy()
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    above = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, above + u * ranked, axis=1)
    return scores


def own_scores(scores: Values, targets: Values) -> Array:
    """Score of each row's true class, `[N]`, the argument of `conformal_quantile`.

    Parameters
    ----------
    scores
        `[N, K]`, a score for every class.
    targets
        Class numbers `[N]`.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN, or targets out of range.
    """
    s = _class_scores(scores)
    y = class_targets(targets, *s.shape)
    return np.take_along_axis(s, y[:, None], axis=1)[:, 0]


def prediction_sets(scores: Values, threshold: float, *, allow_empty: bool = True) -> Mask:
    """Sets of classes, `[N, K]`: whether each class's score is at or below the threshold.

    Parameters
    ----------
    scores
        `[N, K]`, by the same function as the calibration scores.
    threshold
        From `conformal_quantile`.
    allow_empty
        False puts the class of the lowest score into sets that would be empty; coverage can only grow.

    Raises
    ------
    ValueError
        For shapes other than `[N, K]`, or NaN in scores or threshold.
    """
    s = _class_scores(scores)
    if np.isnan(threshold):
        raise ValueError("threshold: expected a number, got nan; take it from conformal_quantile")
    sets = np.asarray(s <= threshold)
    if not allow_empty:
        empty = ~sets.any(1)
        sets[empty, s[empty].argmin(1)] = True
    return sets


def set_coverage(sets: Values, targets: Values) -> float:
    """Share of rows whose set contains the true class.

    Parameters
    ----------
    sets
        `[N, K]`, true (1) where the class is in the set.
    targets
        Class numbers `[N]`.

    Raises
    ------
    ValueError
        For shapes that don't match, sets that are not 0 or 1, or targets out of range.
    """
    members = own_scores(sets, targets)
    if not np.isin(members, (0, 1)).all():
        raise ValueError(
            f"sets: expected 0 or 1, got {members.min():g} to {members.max():g}; "
            "pass the result of prediction_sets(scores, threshold)"
        )
    return float(np.mean(members))


def _class_scores(scores: Values) -> Array:
    array = real("scores", scores, infinite=True)
    if array.ndim != 2:
        raise ValueError(
            f"scores: expected shape [rows, classes], got {array.shape}; score every class of every row"
        )
    return array
