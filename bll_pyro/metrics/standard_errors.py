"""Standard errors of scores over rows that were drawn independently: how far a score may be off by chance.

A score that is a mean of one number a row has the standard error of that mean. One that is a smooth function of means has
the standard error of its linearisation (delta method), again a mean over rows.
"""

from __future__ import annotations

import math

import numpy as np

from bll_pyro.metrics.arrays import Array, Values, probs_and_targets, real, row_weights
from bll_pyro.metrics.calibration_error import bins_of, confidence_and_hit


def standard_error(values: Values, *, sample_weight: Values | None = None) -> float:
    """Standard error of the mean over rows, ``sqrt(sum_n w_n^2 (x_n - mean)^2) / sum_n w_n``, times ``sqrt(N / (N - 1))``.

    Parameters
    ----------
    values
        `[N]`, or `[N, T]`: entries of a row are averaged first, since they are not independent of each other.
    sample_weight
        Weights `[N]` of the rows, numbers >= 0.

    Returns
    -------
    float
        In the unit of the values; NaN for a single row.

    Raises
    ------
    ValueError
        For no values, NaN or infinite ones.
    """
    rows = real("values", values)
    rows = rows.reshape(len(rows), -1).mean(1)
    weight = np.ones(len(rows)) if sample_weight is None else row_weights(sample_weight, len(rows))
    number = np.count_nonzero(weight)
    if number < 2:
        return math.nan
    deviation = rows - np.average(rows, weights=weight)
    return math.sqrt(np.sum((weight * deviation) ** 2) * number / (number - 1)) / float(weight.sum())


def ece_standard_error(
    probs: Values, targets: Values, num_bins: int = 15, *, sample_weight: Values | None = None
) -> float:
    """Standard error of :func:`bll_pyro.metrics.ece` in bins of equal width.

    With the signs `s_b` of the bins' gaps the error is the mean of `s_b(n) (confidence_n - hit_n)` over the rows. Where a gap may
    be on either side of zero this is too large rather than too small.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    num_bins
        Number of bins.
    sample_weight
        Weights `[N]` of the rows, numbers >= 0.

    Raises
    ------
    ValueError
        For input that `ece` refuses.
    """
    p, y = probs_and_targets(probs, targets)
    weight = np.ones(len(y)) if sample_weight is None else row_weights(sample_weight, len(y))
    if p.ndim > y.ndim:
        return standard_error(_signed_gaps(*confidence_and_hit(p, y), num_bins, weight), sample_weight=weight)
    columns = zip(p.reshape(len(p), -1).T, y.reshape(len(y), -1).T.astype(float), strict=True)
    gaps = [_signed_gaps(column, hit, num_bins, weight) for column, hit in columns]
    return standard_error(np.stack(gaps, 1), sample_weight=weight)


def auroc_standard_error(known_scores: Values, unknown_scores: Values) -> float:
    """Standard error of :func:`bll_pyro.metrics.auroc` by the variance of placements (DeLong et al. 1988).

    Parameters
    ----------
    known_scores, unknown_scores
        `[N]` and `[M]`, larger = further out.

    Raises
    ------
    ValueError
        For empty scores or NaN.
    """
    known = np.sort(real("known_scores", known_scores, infinite=True))
    unknown = np.sort(real("unknown_scores", unknown_scores, infinite=True))
    below = _share_below(known, unknown)
    above = 1 - _share_below(unknown, known)
    return math.hypot(standard_error(below), standard_error(above))


def _share_below(these: Array, values: Array) -> Array:
    """Share of sorted numbers that are smaller than each value, ties counting half."""
    counts = np.searchsorted(these, values, "left") + np.searchsorted(these, values, "right")
    return np.asarray(counts / (2 * len(these)))


def _signed_gaps(confidence: Array, hit: Array, num_bins: int, weight: Array) -> Array:
    bins = bins_of(confidence, num_bins)
    gap = confidence - hit
    sign = np.sign(np.bincount(bins, weight * gap, num_bins))
    return np.asarray(sign[bins] * gap)
