"""Thresholds, p-values and their guarantees: exact fractions, brute force, and the beta-binomial law of coverage."""

from fractions import Fraction
from math import ceil, comb

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom, false_discovery_control

from bll_pyro import conformal

ALPHAS = ["0.01", "0.05", "0.07", "0.1", "0.29", "0.3", "0.5", "0.9"]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_quantile_is_the_order_statistic_of_exact_arithmetic(alpha):
    exact = Fraction(alpha)
    for num_rows in (*range(1, 130), 999, 9999):
        scores = np.random.default_rng(num_rows).permutation(num_rows) + 1.0  # the k-th smallest is k
        rank = ceil((num_rows + 1) * (1 - exact))
        if rank <= num_rows:
            assert conformal.conformal_quantile(scores, float(alpha)) == rank
        else:
            needed = ceil(1 / exact) - 1
            assert num_rows < needed
            with pytest.raises(
                ValueError, match=f"at least {needed} calibration rows .* got {num_rows}; add"
            ):
                conformal.conformal_quantile(scores, float(alpha))


def test_quantile_of_alpha_written_as_one_minus_a_level():
    assert 1 - 0.9 < 0.1
    assert conformal.conformal_quantile(np.arange(1, 10), 1 - 0.9) == 9


def test_quantile_accepts_tensors_and_infinite_scores():
    scores = torch.tensor([1.0, torch.inf, 2.0, 0.0])
    assert conformal.conformal_quantile(scores, 0.4) == 2
    assert conformal.conformal_quantile(scores, 0.2) == np.inf


def test_p_values_count_ties_as_stranger():
    calibration = np.array([3.0, 1.0, 2.0, 2.0, np.inf])
    new = np.array([[0.0, 1.0, 1.5], [2.0, 3.0, 4.0], [np.inf, -np.inf, 2.5]])
    expected = [[(1 + sum(c >= s for c in calibration)) / 6 for s in row] for row in new]
    np.testing.assert_array_equal(conformal.p_values(calibration, new), expected)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("ties", [False, True])
def test_score_above_the_threshold_is_p_value_at_most_alpha(alpha, ties):
    rng = np.random.default_rng(0)
    for num_rows in (99, 100, 137):
        calibration, new = rng.normal(size=num_rows), np.append(rng.normal(size=300), [np.inf, -np.inf])
        if ties:
            calibration, new = np.round(2 * calibration), np.round(2 * new)
        above = new > conformal.conformal_quantile(calibration, float(alpha))
        np.testing.assert_array_equal(above, conformal.p_values(calibration, new) <= float(alpha))


@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_of_exchangeable_rows_stay_below_alpha(ties):
    rng = np.random.default_rng(1)
    num_repeats, alpha = 4000, 0.1
    scores = rng.normal(size=(num_repeats, 31))
    if ties:
        scores = np.round(scores)
    alarms = sum(conformal.p_values(row[:30], row[30:])[0] <= alpha for row in scores)
    # without ties the rate is floor(alpha 31) / 31 = 3 / 31 exactly
    low, high = binom.interval(0.9999, num_repeats, 3 / 31)
    assert alarms <= high
    assert ties or alarms >= low


def counts_of_covered_rows(num_repeats: int, num_calibration: int, num_new: int, alpha: float) -> np.ndarray:
    scores = np.random.default_rng(2).exponential(size=(num_repeats, num_calibration + num_new))
    return np.array(
        [
            np.sum(row[num_calibration:] <= conformal.conformal_quantile(row[:num_calibration], alpha))
            for row in scores
        ]
    )


@pytest.mark.parametrize(
    ("num_calibration", "num_new", "alpha"), [(19, 50, 0.05), (100, 200, 0.1), (250, 40, 0.3)]
)
def test_coverage_over_repeated_splits_follows_its_beta_binomial_law(num_calibration, num_new, alpha):
    num_repeats = 3000
    counts = counts_of_covered_rows(num_repeats, num_calibration, num_new, alpha)
    k = ceil((num_calibration + 1) * (1 - Fraction(str(alpha))))
    law = betabinom(num_new, k, num_calibration + 1 - k)
    # Dvoretzky, Kiefer and Wolfowitz: the distance exceeds this with probability 2 exp(-2 n d^2) = 1e-4
    distance = max(abs(np.mean(counts <= c) - law.cdf(c)) for c in range(num_new + 1))
    assert distance < np.sqrt(np.log(2 / 1e-4) / (2 * num_repeats))


@pytest.mark.parametrize(
    ("num_calibration", "num_new", "alpha"), [(19, 50, 0.05), (100, 200, 0.1), (250, 40, 0.3)]
)
def test_coverage_band_holds_the_coverage_of_a_split_as_often_as_it_says(num_calibration, num_new, alpha):
    num_repeats, prob = 3000, 0.9
    counts = counts_of_covered_rows(num_repeats, num_calibration, num_new, alpha)
    lower, upper = conformal.coverage_band(num_calibration, num_new, alpha, prob)
    inside = np.mean((lower <= counts / num_new) & (counts / num_new <= upper))
    assert inside > prob - 4 * np.sqrt(prob * (1 - prob) / num_repeats)
    # ... and not by being wide: without its ends it holds less
    narrow = np.mean((lower < counts / num_new) & (counts / num_new < upper))
    assert narrow < prob + 4 * np.sqrt(prob * (1 - prob) / num_repeats)


@pytest.mark.parametrize(
    ("num_calibration", "num_new", "alpha"), [(3, 4, 0.5), (19, 50, 0.05), (60, 30, 0.1)]
)
def test_coverage_band_has_the_ends_that_counting_gives(num_calibration, num_new, alpha):
    k, total = ceil((num_calibration + 1) * (1 - Fraction(str(alpha)))), num_calibration + num_new
    # of all orders of the rows, those with c new ones below the k-th calibration score
    ways = [comb(k - 1 + c, c) * comb(total - k - c, num_new - c) for c in range(num_new + 1)]
    below = [Fraction(sum(ways[: c + 1]), comb(total, num_new)) for c in range(num_new + 1)]
    assert below[-1] == 1
    for prob in ("0.5", "0.9", "0.99"):
        tail = (1 - Fraction(prob)) / 2
        ends = [next(c for c, share in enumerate(below) if share >= q) / num_new for q in (tail, 1 - tail)]
        assert conformal.coverage_band(num_calibration, num_new, alpha, float(prob)) == tuple(ends)


def step_up(p: list[Fraction], fdr: Fraction) -> list[bool]:
    """Benjamini and Hochberg in exact fractions."""
    num_tests, ranked = len(p), sorted(p)
    passed = [k for k in range(1, num_tests + 1) if ranked[k - 1] <= fdr * k / num_tests]
    return [q <= ranked[max(passed) - 1] if passed else False for q in p]


@pytest.mark.parametrize("seed", range(20))
def test_benjamini_hochberg_is_the_step_up_rule_in_exact_fractions(seed):
    rng = np.random.default_rng(seed)
    num_calibration, num_tests = int(rng.choice([9, 19, 99, 199])), int(rng.integers(1, 40))
    ranks = np.minimum(
        rng.integers(1, num_calibration + 2, num_tests), rng.integers(1, num_calibration + 2, num_tests)
    )
    p = [Fraction(int(r), num_calibration + 1) for r in ranks]
    for fdr in ("0.05", "0.07", "0.1", "0.3", "0.5"):
        flagged = conformal.benjamini_hochberg([float(q) for q in p], float(fdr))
        assert flagged.tolist() == step_up(p, Fraction(fdr))


def test_benjamini_hochberg_decides_a_p_value_on_the_line_as_the_rule_says():
    # 999 calibration rows, a batch of 25: the seventeenth p-value is 34/1000 = 17/25 of 0.05, so it passes
    p = [34 / 1000] * 17 + [1.0] * 8
    assert false_discovery_control(p)[0] > 0.05  # which rounding would hide
    assert conformal.benjamini_hochberg(p, 0.05).tolist() == [True] * 17 + [False] * 8


def test_benjamini_hochberg_agrees_with_adjusted_p_values():
    p = np.random.default_rng(3).beta(0.3, 1, size=200)
    flagged = conformal.benjamini_hochberg(p, 0.1)
    np.testing.assert_array_equal(flagged, false_discovery_control(p) <= 0.1)
    assert 0 < flagged.sum() < 200


def test_false_discovery_rate_of_conformal_p_values_is_controlled():
    rng = np.random.default_rng(4)
    num_repeats, num_known, num_unknown, fdr = 400, 40, 10, 0.2
    proportions, found = [], []
    for _ in range(num_repeats):
        new = np.concatenate([rng.normal(size=num_known), rng.normal(3, 1, size=num_unknown)])
        flagged = conformal.benjamini_hochberg(conformal.p_values(rng.normal(size=200), new), fdr)
        proportions.append(flagged[:num_known].sum() / max(flagged.sum(), 1))
        found.append(flagged[num_known:].mean())
    # at most fdr times the share of known rows, for conformal p-values too
    assert np.mean(proportions) <= fdr * 0.8 + 4 * np.std(proportions) / np.sqrt(num_repeats)
    assert np.mean(found) > 0.5


def test_refusals():
    with pytest.raises(ValueError, match="alpha: expected a number strictly between 0 and 1, got 5"):
        conformal.conformal_quantile(np.arange(100), 5)
    with pytest.raises(
        ValueError, match=r"scores: expected one score a row, shape \[rows\], got \(4, 2\); reduce"
    ):
        conformal.conformal_quantile(np.zeros((4, 2)), 0.5)
    with pytest.raises(ValueError, match="calibration_scores: expected no NaN, got 1 bad of 2"):
        conformal.p_values([0.0, np.nan], [1.0])
    with pytest.raises(ValueError, match="scores: expected no NaN"):
        conformal.p_values([0.0], [np.nan])
    with pytest.raises(ValueError, match=r"p_values: expected values from 0 to 1, got -1 to 0.5"):
        conformal.benjamini_hochberg([-1.0, 0.5], 0.1)
    with pytest.raises(ValueError, match=r"p_values: expected shape \[rows\], got \(1, 2\); pass one batch"):
        conformal.benjamini_hochberg([[0.1, 0.5]], 0.1)
    with pytest.raises(ValueError, match="fdr: expected a number strictly between 0 and 1, got 0"):
        conformal.benjamini_hochberg([0.1, 0.5], 0.0)
    with pytest.raises(ValueError, match=r"at least 19 calibration rows for alpha=0.05, got 18"):
        conformal.coverage_band(18, 10, 0.05)
    with pytest.raises(ValueError, match="num_new: expected a whole number of at least 1, got 0"):
        conformal.coverage_band(19, 0, 0.05)
