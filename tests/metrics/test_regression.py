"""Errors of the mean, coverage, width and score of intervals against scikit-learn and identities."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from bll_pyro import metrics

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(200, 3))
MEAN = Y + RNG.normal(size=(200, 3)) * [0.5, 1, 4]


def test_rmse_and_mae():
    assert metrics.rmse(MEAN[:, 0], Y[:, 0]) == pytest.approx(
        np.sqrt(mean_squared_error(Y[:, 0], MEAN[:, 0]))
    )
    assert metrics.mae(MEAN[:, 0], Y[:, 0]) == pytest.approx(mean_absolute_error(Y[:, 0], MEAN[:, 0]))
    # several outputs: the root of the overall mean, not the mean of the roots
    assert metrics.rmse(MEAN, Y) == pytest.approx(np.sqrt(mean_squared_error(Y.ravel(), MEAN.ravel())))
    assert metrics.mae(0.0, Y) == pytest.approx(np.mean(np.abs(Y)))


def test_coverage_counts_both_ends():
    assert metrics.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1.5, -0.5]) == 0.5
    assert metrics.coverage(-np.inf, np.inf, Y) == 1


@pytest.mark.parametrize("prob", [0.5, 0.9])
def test_coverage_of_right_intervals_is_nominal(prob):
    y = np.random.default_rng(1).normal(2, 3, 20_000)
    lower, upper = norm.interval(prob, 2, 3)
    tolerance = 4 * np.sqrt(prob * (1 - prob) / 20_000)
    assert metrics.coverage(lower, upper, y) == pytest.approx(prob, abs=tolerance)


def test_sharpness_is_the_mean_width():
    assert metrics.sharpness([0.0, 1.0], [1.0, 4.0]) == 2
    assert metrics.sharpness([0.0, -np.inf], [1.0, 4.0]) == np.inf


@pytest.mark.parametrize("prob", [0.5, 0.9])
def test_interval_score_is_the_sum_of_two_pinball_losses(prob):
    half = np.abs(RNG.normal(size=Y.shape)) + 0.1
    lower, upper, a = MEAN - half, MEAN + 2 * half, 1 - prob
    score = metrics.interval_score(lower, upper, Y, prob)
    assert score.shape == Y.shape
    pinballs = [
        mean_pinball_loss(Y.ravel(), q.ravel(), alpha=t) for q, t in ((lower, a / 2), (upper, 1 - a / 2))
    ]
    assert score.mean() == pytest.approx(2 / a * sum(pinballs), rel=1e-12)


def test_interval_score_is_least_for_the_right_quantiles():
    y = np.random.default_rng(2).normal(size=50_000)
    lower, upper = norm.interval(0.8)
    right = metrics.interval_score(lower, upper, y, 0.8)
    for stretch in (0.8, 1.25):
        paired = metrics.interval_score(stretch * lower, stretch * upper, y, 0.8) - right
        assert paired.mean() > 4 * paired.std() / np.sqrt(len(y))


def test_refusals():
    for call in (metrics.rmse, metrics.mae):
        with pytest.raises(
            ValueError, match=r"predictions: expected shape \(200,\) .* got \(200, 1\); reshape"
        ):
            call(MEAN[:, :1], Y[:, 0])
        with pytest.raises(ValueError, match="targets: expected finite values, got 1 bad of 2"):
            call([0.0, 0.0], [0.0, np.inf])
    with pytest.raises(
        ValueError, match=r"lower <= upper, got 1 crossed of 2, the first at index \(1,\); swap"
    ):
        metrics.coverage([0, 2], [1, 1], [0, 0])
    with pytest.raises(ValueError, match="lower <= upper, got 1 crossed of 1"):
        metrics.sharpness([np.inf], [np.inf])
    with pytest.raises(ValueError, match="prob: expected a number strictly between 0 and 1, got 1"):
        metrics.interval_score(0.0, 1.0, [0.5], 1)
    with pytest.raises(ValueError, match="upper: expected finite values"):
        metrics.interval_score([0.0], [np.inf], [0.5], 0.9)
