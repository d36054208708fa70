"""Errors of predicted real values, and coverage, width and score of intervals.

Arrays are `[N]` or `[N, T]`; means are over all entries, with rows weighted by `sample_weight [N]` (numbers >= 0) where it is
given, and the units are those of the targets.
"""

from __future__ import annotations

import math

import numpy as np

from bll_pyro.metrics.arrays import Array, Values, checked_share, like, mean_of_rows, real


def rmse(predictions: Values, targets: Values, *, sample_weight: Values | None = None) -> float:
    """Root mean squared error over all entries, `sqrt(mean (prediction - target)^2)`.

    For `[N, T]` this is the root of the mean over all N T entries, not the mean of T roots.

    Raises
    ------
    ValueError
        For shapes that differ, NaN or infinite values.
    """
    y = real("targets", targets)
    return math.sqrt(mean_of_rows((like("predictions", predictions, y.shape) - y) ** 2, sample_weight))


def mae(predictions: Values, targets: Values, *, sample_weight: Values | None = None) -> float:
    """Mean absolute error over all entries, which the predictive median minimises.

    Raises
    ------
    ValueError
        For shapes that differ, NaN or infinite values.
    """
    y = real("targets", targets)
    return mean_of_rows(np.abs(like("predictions", predictions, y.shape) - y), sample_weight)


def coverage(lower: Values, upper: Values, targets: Values, *, sample_weight: Values | None = None) -> float:
    """Share of targets inside their closed interval, `lower <= target <= upper`.

    Raises
    ------
    ValueError
        For shapes that differ, NaN, or a lower bound above its upper one. Infinite bounds are allowed.
    """
    y = real("targets", targets)
    low, high = _bounds(lower, upper, y.shape)
    return mean_of_rows((low <= y) & (y <= high), sample_weight)


def sharpness(lower: Values, upper: Values, *, sample_weight: Values | None = None) -> float:
    """Mean width of the intervals; narrower is better only at equal coverage.

    Raises
    ------
    ValueError
        For shapes that differ, NaN, or a lower bound above its upper one. Infinite bounds are allowed.
    """
    low, high = _bounds(lower, upper, real("upper", upper, infinite=True).shape)
    return mean_of_rows(high - low, sample_weight)


def interval_score(lower: Values, upper: Values, targets: Values, prob: float) -> Array:
    """Interval score (Gneiting and Raftery 2007, eq. 43) of each target; smaller is better.

    `(u - l) + 2/a (l - y)_+ + 2/a (y - u)_+` with `a = 1 - prob`: the width plus a penalty for targets outside. Proper
    for the equal-tailed interval of probability `prob`.

    Parameters
    ----------
    lower, upper, targets
        One shape, `[N]` or `[N, T]`.
    prob
        Nominal coverage of the intervals, in (0, 1).

    Returns
    -------
    Array
        Scores in the targets' shape and units.

    Raises
    ------
    ValueError
        For shapes that differ, NaN or infinite values, crossed bounds, `prob` outside (0, 1).
    """
    y = real("targets", targets)
    low, high = _bounds(lower, upper, y.shape, infinite=False)
    penalty = 2 / (1 - checked_share("prob", prob))
    return high - low + penalty * (np.maximum(low - y, 0) + np.maximum(y - high, 0))


def _bounds(
    lower: Values, upper: Values, shape: tuple[int, ...], *, infinite: bool = True
) -> tuple[Array, Array]:
    low, high = like("lower", lower, shape, infinite=infinite), like("upper", upper, shape, infinite=infinite)
    crossed = (low > high) | (low == np.inf) | (high == -np.inf)
    if crossed.any():
        raise ValueError(
            f"expected lower <= upper, got {int(crossed.sum())} crossed of {crossed.size}, the first at "
            f"index {tuple(int(i) for i in np.argwhere(crossed)[0])}; swap the two arguments"
        )
    return low, high
