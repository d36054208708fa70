"""Normalised-residual intervals: by hand, and their coverage with right and wrong scales."""

import numpy as np
import pytest
from scipy.stats import binom

from bll_pyro import conformal, metrics


def test_scores_and_interval_by_hand():
    scores = conformal.normalized_residual_scores([0.0, 1.0, 2.0], [1.0, 2.0, 0.5], [3.0, 0.0, 2.0])
    np.testing.assert_allclose(scores, [3, 0.5, 0])
    lower, upper = conformal.normalized_residual_interval([0.0, 1.0], [1.0, 2.0], 1.5)
    np.testing.assert_allclose(lower, [-1.5, -2])
    np.testing.assert_allclose(upper, [1.5, 4])


def test_target_is_inside_exactly_when_its_score_is_at_most_the_threshold():
    rng = np.random.default_rng(0)
    loc, scale, y = rng.normal(size=(300, 2)), rng.uniform(0.1, 3, size=(300, 2)), rng.normal(size=(300, 2))
    lower, upper = conformal.normalized_residual_interval(loc, scale, 0.8)
    inside = (lower <= y) & (y <= upper)
    np.testing.assert_array_equal(inside, conformal.normalized_residual_scores(loc, scale, y) <= 0.8)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("model", ["right", "too sure", "one scale"])
def test_coverage_lies_in_its_beta_binomial_band_over_repeated_splits(model, alpha):
    rng = np.random.default_rng(1)
    num_repeats, num_calibration, num_new, prob = 300, 150, 250, 0.95
    lower, upper = conformal.coverage_band(num_calibration, num_new, alpha, prob)
    inside = 0
    for _ in range(num_repeats):
        x = rng.uniform(-1, 1, size=num_calibration + num_new)
        noise = np.exp(x)
        y = np.sin(3 * x) + noise * rng.standard_t(4, size=len(x))
        loc = np.sin(3 * x) + 0.2 * x
        scale = {"right": noise, "too sure": 0.1 * noise, "one scale": np.ones_like(x)}[model]
        old, new = slice(num_calibration), slice(num_calibration, None)
        scores = conformal.normalized_residual_scores(loc[old], scale[old], y[old])
        bounds = conformal.normalized_residual_interval(
            loc[new], scale[new], conformal.conformal_quantile(scores, alpha)
        )
        inside += lower <= metrics.coverage(*bounds, y[new]) <= upper
    assert inside >= binom.ppf(1e-4, num_repeats, prob)


def test_refusals():
    with pytest.raises(
        ValueError, match="scale: expected positive standard deviations, got -1; check its source"
    ):
        conformal.normalized_residual_scores([0.0], [-1.0], [1.0])
    with pytest.raises(ValueError, match=r"loc: expected shape \(2,\) .* got \(2, 1\)"):
        conformal.normalized_residual_scores([[0.0], [0.0]], 1.0, [1.0, 2.0])
    for threshold in (-1.0, np.nan):
        with pytest.raises(ValueError, match="threshold: expected 0 or more"):
            conformal.normalized_residual_interval([0.0], [1.0], threshold)
    with pytest.raises(ValueError, match="loc: expected finite values"):
        conformal.normalized_residual_interval([np.inf], [1.0], 1.0)
