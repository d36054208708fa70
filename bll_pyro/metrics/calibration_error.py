"""Calibration of probabilities: reliability diagrams and calibration errors.

For classes the confidence is the largest probability and a hit is a correct decision (Guo et al. 2017); for
labels the confidence is the probability of a 1 and a hit is a 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bll_pyro.metrics.arrays import (
    Array,
    Integers,
    Values,
    at_least_one,
    checked_share,
    probs_and_targets,
    row_weights,
)
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class Reliability(Summary):
    """Confidence and accuracy of each bin; NaN in a bin without rows.

    Attributes
    ----------
    confidence
        `[num_bins]`, mean confidence of the bin's rows.
    accuracy
        `[num_bins]`, share of hits among the bin's rows.
    count
        `[num_bins]`, number of rows in the bin.
    lower, upper
        `[num_bins]`, Wilson score interval (Wilson 1927) for the bin's true share of hits.
    """

    confidence: Array
    accuracy: Array
    count: Integers
    lower: Array
    upper: Array

    @property
    def ece(self) -> float:
        """Expected calibration error, `sum_b count_b / N |accuracy_b - confidence_b|`."""
        return _expected_gap(self.confidence, self.accuracy, self.count)


def reliability(
    probs: Values, targets: Values, num_bins: int = 15, equal_mass: bool = False, prob: float = 0.95
) -> Reliability:
    """Mean confidence and share of hits in bins of confidence.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or one label `[N]` for both.
    num_bins
        Number of bins B.
    equal_mass
        False: bin b is `[b/B, (b+1)/B)`, the last one closed. True: bins of N/B rows each in the order of
        confidence; rows of equal confidence share a bin, so the order of the rows does not matter.
    prob
        Coverage of the Wilson interval of each bin, in (0, 1).

    Raises
    ------
    ValueError
        For input that `accuracy` refuses, several labels at once, `num_bins < 1`, `prob` outside (0, 1).
    """
    from scipy.stats import binomtest

    p, y = probs_and_targets(probs, targets)
    if p.ndim == y.ndim == 2:
        raise ValueError(
            f"expected classes or one label, got {p.shape[1]} labels; "
            "call it for each: probs[:, t], targets[:, t]"
        )
    confidence, accuracy, count = _binned(*confidence_and_hit(p, y), num_bins, equal_mass)
    lower, upper = np.full(num_bins, np.nan), np.full(num_bins, np.nan)
    checked_share("prob", prob)
    for b in np.flatnonzero(count):
        test = binomtest(round(accuracy[b] * count[b]), int(count[b]))
        lower[b], upper[b] = test.proportion_ci(prob, method="wilson")
    return Reliability(confidence, accuracy, count.astype(np.int64), lower, upper)


def ece(
    probs: Values,
    targets: Values,
    num_bins: int = 15,
    equal_mass: bool = False,
    *,
    sample_weight: Values | None = None,
) -> float:
    """Expected calibration error `sum_b count_b / N |accuracy_b - confidence_b|` (Naeini et al. 2015; Guo et al. 2017).

    For classes it is that of the largest probability, for labels that of the probability of a 1, averaged over several
    labels. It has an upward bias of order `sqrt(B / N)`: even calibrated probabilities have a positive value, and values
    are comparable only for equal numbers of rows.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    num_bins, equal_mass
        The bins, as in `reliability`.
    sample_weight
        Weights `[N]` of the rows, numbers >= 0; for bins of equal width.

    Raises
    ------
    ValueError
        For input that `accuracy` refuses, `num_bins < 1`, weights and bins of equal mass together.
    """
    p, y = probs_and_targets(probs, targets)
    if sample_weight is not None and equal_mass:
        raise ValueError(
            "ece: expected bins of equal width for weighted rows, got equal_mass=True; leave one of them out"
        )
    weights = None if sample_weight is None else row_weights(sample_weight, len(y))
    if p.ndim == y.ndim:
        return _mean_over_columns(p, y, num_bins, equal_mass, weights)
    return _expected_gap(*_binned(*confidence_and_hit(p, y), num_bins, equal_mass, weights))


def classwise_ece(probs: Values, targets: Values, num_bins: int = 15, equal_mass: bool = False) -> float:
    """Calibration error of every class's probability, averaged over the classes (Kull et al. 2019).

    `1/K sum_k sum_b count_kb / N |share of class k in bin b - mean p_k in bin b|`: it uses all K probabilities of a row,
    not only the largest. For labels it equals `ece`.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    num_bins, equal_mass
        The bins of each class, as in `reliability`.

    Raises
    ------
    ValueError
        For input that `accuracy` refuses, `num_bins < 1`.
    """
    p, y = probs_and_targets(probs, targets)
    events = y if p.ndim == y.ndim else (y[:, None] == np.arange(p.shape[1])).astype(np.int64)
    return _mean_over_columns(p, events, num_bins, equal_mass)


def adaptive_ece(probs: Values, targets: Values, num_bins: int = 15) -> float:
    """Adaptive calibration error (Nixon et al. 2019): `classwise_ece` in bins of equal mass.

    Bins are weighted by their number of rows; without tied probabilities, and if `num_bins` divides N, this is the paper's
    unweighted mean over bins.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    num_bins
        Number of bins for each class.

    Raises
    ------
    ValueError
        For input that `accuracy` refuses, `num_bins < 1`.
    """
    return classwise_ece(probs, targets, num_bins, equal_mass=True)


def confidence_and_hit(p: Array, y: Integers) -> tuple[Array, Array]:
    """Confidence and hit of each row, as the head of this file defines them."""
    if p.ndim == y.ndim:
        return p, y.astype(np.float64)
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def bins_of(confidence: Array, num_bins: int) -> Integers:
    """Numbers `[N]` of the bins of equal width, `[b/B, (b+1)/B)`, the last one closed."""
    edges = np.linspace(0, 1, num_bins + 1)
    return np.asarray(np.minimum(np.searchsorted(edges, confidence, side="right") - 1, num_bins - 1))


def _binned(
    confidence: Array, hit: Array, num_bins: int, equal_mass: bool, weights: Array | None = None
) -> tuple[Array, Array, Array | Integers]:
    """Mean confidence, share of hits and number (or total weight) of the rows of each bin."""
    at_least_one("num_bins", num_bins)
    if equal_mass:
        from scipy.stats import rankdata

        # twice the mid-rank minus 1 is a whole number, so that rounding cannot change a row's bin
        position = (2 * rankdata(confidence) - 1).astype(np.int64)
        bins = position * num_bins // (2 * len(confidence))
    else:
        bins = bins_of(confidence, num_bins)
    count = np.bincount(bins, weights, num_bins)
    share = 1.0 if weights is None else weights
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that marks an empty bin
        mean_confidence = np.bincount(bins, share * confidence, num_bins) / count
        mean_hit = np.bincount(bins, share * hit, num_bins) / count
    return mean_confidence, mean_hit, count


def _expected_gap(confidence: Array, accuracy: Array, count: Array | Integers) -> float:
    filled = count > 0
    gap = np.abs(accuracy[filled] - confidence[filled])
    return float(np.sum(gap * count[filled]) / count.sum())


def _mean_over_columns(
    p: Array, events: Integers, num_bins: int, equal_mass: bool, weights: Array | None = None
) -> float:
    columns = zip(p.reshape(len(p), -1).T, events.reshape(len(p), -1).T, strict=True)
    gaps = [_expected_gap(*_binned(c, e.astype(float), num_bins, equal_mass, weights)) for c, e in columns]
    return float(np.mean(gaps))
