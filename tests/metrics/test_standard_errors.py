"""Standard errors against the bootstrap, and against textbook formulas."""

import numpy as np
import pytest

from bll_pyro import metrics

RANDOM = np.random.default_rng(0)
NUM_RESAMPLES = 500  # the standard deviation of a bootstrap's standard error is 3.2 % of it
NEAR = 0.12


def bootstrap(score, num_rows: int) -> float:
    """Standard deviation of a score of rows that are drawn anew."""
    draws = (RANDOM.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES))
    return float(np.std([score(rows) for rows in draws]))


def test_of_a_mean():
    values = RANDOM.gamma(2.0, size=50)
    assert metrics.standard_error(values) == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    pairs = np.stack([values, values[::-1]], 1)
    assert metrics.standard_error(pairs) == pytest.approx(pairs.mean(1).std(ddof=1) / np.sqrt(50))
    assert np.isnan(metrics.standard_error([3.0]))


def test_of_a_weighted_mean():
    """Equal weights change nothing, rows of weight 0 count for nothing, and the bootstrap agrees."""
    values, weight = RANDOM.normal(size=300), RANDOM.integers(1, 6, 300).astype(float)
    assert metrics.standard_error(values, sample_weight=np.full(300, 7.0)) == pytest.approx(
        metrics.standard_error(values)
    )
    padded, none = np.append(values, 1e6), np.append(weight, 0.0)
    expected = metrics.standard_error(values, sample_weight=weight)
    assert metrics.standard_error(padded, sample_weight=none) == pytest.approx(expected)
    found = bootstrap(lambda rows: np.average(values[rows], weights=weight[rows]), 300)
    assert expected == pytest.approx(found, rel=NEAR)


def test_of_the_calibration_error():
    """Of probabilities that are off everywhere, so that no gap changes its sign."""
    probs = RANDOM.uniform(0.3, 0.7, 800)
    targets = (RANDOM.uniform(size=800) < probs + 0.25).astype(int)
    found = bootstrap(lambda rows: metrics.ece(probs[rows], targets[rows], 4), 800)
    assert metrics.ece_standard_error(probs, targets, 4) == pytest.approx(found, rel=NEAR)
    both = np.stack([1 - probs, probs], 1)
    assert metrics.ece_standard_error(both, targets, 1) == pytest.approx(
        np.std(both.max(1) - (both.argmax(1) == targets), ddof=1) / np.sqrt(800)
    )
    labels = np.stack([probs, probs], 1), np.stack([targets, targets], 1)
    assert metrics.ece_standard_error(*labels, 4) == pytest.approx(
        metrics.ece_standard_error(probs, targets, 4)
    )


def test_of_the_auroc():
    known, unknown = RANDOM.normal(size=150), RANDOM.normal(1.0, 1.2, size=90).round(1)

    def resampled() -> float:
        difference = RANDOM.choice(unknown, 90)[:, None] - RANDOM.choice(known, 150)
        return float(np.mean(difference > 0) + 0.5 * np.mean(difference == 0))

    found = np.std([resampled() for _ in range(NUM_RESAMPLES)])
    assert metrics.auroc_standard_error(known, unknown) == pytest.approx(found, rel=NEAR)
    assert metrics.auroc_standard_error([0.0, 1.0], [2.0, 3.0]) == 0.0
