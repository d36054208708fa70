"""Split conformal prediction from scores: threshold, p-values, multiple tests, coverage.

Calibration rows and new rows must be exchangeable, and the model must not be trained on the calibration rows. Larger
scores mean less plausible rows; infinite scores are allowed.
"""

from __future__ import annotations

import numpy as np

from bll_pyro.metrics.arrays import (
    ROUNDING,
    Array,
    Mask,
    Values,
    at_least_one,
    checked_share,
    real,
    round_up,
    unit,
)


def conformal_quantile(scores: Values, alpha: float) -> float:
    """Threshold with probability at least `1 - alpha` that a new score is at or below it.

    The `k`-th smallest of n calibration scores, `k = ceil((n + 1) (1 - alpha))` (Vovk et al. 2005; Lei et al.
    2018). A score is above it exactly when its `p_values` are at most `alpha`.

    Parameters
    ----------
    scores
        Calibration scores `[n]`.
    alpha
        Allowed share of misses or false alarms, in (0, 1).

    Raises
    ------
    ValueError
        For NaN, `alpha` outside (0, 1), or too few rows: below `1/alpha - 1` the threshold would be infinite.
    """
    array = _scores("scores", scores)
    rank = _rank(len(array), alpha)
    return float(np.partition(array, rank - 1)[rank - 1])


def p_values(calibration_scores: Values, scores: Values) -> Array:
    """Conformal p-values, `(1 + #{calibration score >= score}) / (n + 1)` (Vovk et al. 2005).

    For a row exchangeable with the calibration rows `P(p <= a) <= a` for every a, also with ties. The smallest
    possible value is `1 / (n + 1)`, so a smaller `alpha` never raises an alarm.

    Parameters
    ----------
    calibration_scores
        `[n]`, larger = less plausible.
    scores
        New scores, any shape.

    Returns
    -------
    Array
        p-values in the shape of `scores`.

    Raises
    ------
    ValueError
        For empty scores or NaN.
    """
    reference = np.sort(_scores("calibration_scores", calibration_scores))
    new = real("scores", scores, infinite=True)
    num_at_least = len(reference) - np.searchsorted(reference, new, side="left")
    return np.asarray((1 + num_at_least) / (len(reference) + 1))


def benjamini_hochberg(p_values: Values, fdr: float) -> Mask:
    """Rows of a batch to flag so that the false discovery rate is at most `fdr`.

    The k smallest p-values, with the largest k for which `p_(k) <= k fdr / m` (Benjamini and Hochberg 1995).
    Valid for conformal p-values of one calibration set (Bates et al. 2023), although they are dependent.

    Parameters
    ----------
    p_values
        `[m]`, one for each row of the batch.
    fdr
        Allowed expected share of false alarms among the alarms, in (0, 1).

    Raises
    ------
    ValueError
        For p-values outside [0, 1], more than one dimension, NaN, or `fdr` outside (0, 1).
    """
    from scipy.stats import false_discovery_control

    p = unit("p_values", p_values)
    if p.ndim != 1:
        raise ValueError(f"p_values: expected shape [rows], got {p.shape}; pass one batch at a time")
    # conformal p-values are fractions that may equal k fdr / m exactly; the comparison must not depend on rounding
    return np.asarray(false_discovery_control(p) <= checked_share("fdr", fdr) * (1 + ROUNDING))


def coverage_band(
    num_calibration: int, num_new: int, alpha: float, prob: float = 0.95
) -> tuple[float, float]:
    """Central interval of the share of new rows at or below the threshold, for one calibration set.

    For continuous scores the number of covered rows is `BetaBinomial(num_new, k, n + 1 - k)` with
    `k = ceil((n + 1) (1 - alpha))` (Angelopoulos and Bates 2021, section 3.2). The share of alarms lies between
    `1 - upper` and `1 - lower`.

    Parameters
    ----------
    num_calibration, num_new
        Number n of calibration rows, and number of new rows.
    alpha
        Level of the threshold, in (0, 1).
    prob
        Smallest probability of the interval, in (0, 1).

    Returns
    -------
    tuple[float, float]
        Lower and upper bound, both included.

    Raises
    ------
    ValueError
        For too few calibration rows, or numbers out of range.
    """
    from scipy.stats import betabinom

    at_least_one("num_calibration", num_calibration)
    at_least_one("num_new", num_new)
    rank = _rank(num_calibration, alpha)
    lower, upper = betabinom.interval(checked_share("prob", prob), num_new, rank, num_calibration + 1 - rank)
    return float(lower) / num_new, float(upper) / num_new


def _scores(name: str, scores: Values) -> Array:
    array = real(name, scores, infinite=True)
    if array.ndim != 1:
        raise ValueError(
            f"{name}: expected one score a row, shape [rows], got {array.shape}; reduce each row to one"
        )
    return array


def _rank(num_rows: int, alpha: float) -> int:
    rank = round_up((num_rows + 1) * (1 - checked_share("alpha", alpha)))
    if rank > num_rows:
        raise ValueError(
            f"expected at least {round_up(1 / alpha) - 1} calibration rows for alpha={alpha:g}, "
            f"got {num_rows}; add calibration rows or raise alpha"
        )
    return rank
