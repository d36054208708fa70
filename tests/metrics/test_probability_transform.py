"""PIT values: uniform where the prediction is right, with the stated errors where it is not."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm, poisson

from bll_pyro import metrics


def test_statistic_is_the_largest_distance_on_either_side_of_each_step():
    values = np.random.default_rng(0).random(37)
    result = metrics.pit(values)
    x = np.sort(values)
    i = np.arange(1, 38)
    assert result.statistic == pytest.approx(max((i / 37 - x).max(), (x - (i - 1) / 37).max()), rel=1e-12)
    np.testing.assert_array_equal(result.values, x)
    np.testing.assert_array_equal(result.ecdf, i / 37)


@pytest.mark.parametrize("prob", [0.5, 0.95])
def test_band_holds_the_whole_curve_of_uniform_values_as_often_as_it_says(prob):
    rng = np.random.default_rng(1)
    num_repeats, inside = 2000, 0
    band = metrics.pit(np.full(15, 0.5), prob).upper[0] - 0.5
    for values in rng.random((num_repeats, 15)):
        x = np.sort(values)
        inside += np.all((x - np.arange(15) / 15 <= band) & (np.arange(1, 16) / 15 - x <= band))
    low, high = binom.interval(0.9999, num_repeats, prob)
    assert low <= inside <= high


def test_band_and_p_value_are_one_verdict():
    for seed in range(30):
        result = metrics.pit(np.random.default_rng(seed).random(20) ** 1.3, prob=0.9)
        step_before = result.ecdf - 1 / 20
        outside = np.any(result.ecdf > result.values + (result.upper - result.values).max())
        outside |= bool(np.any(step_before < result.values - (result.values - result.lower).max()))
        assert outside == (result.p_value < 0.1)


@pytest.mark.parametrize(
    ("loc", "scale", "uniform"), [(0, 1, True), (0.1, 1, False), (0, 1.2, False), (0, 0.8, False)]
)
def test_normal_predictions(loc, scale, uniform):
    y = np.random.default_rng(2).normal(size=5000)
    p_value = metrics.pit(norm.cdf(y, loc, scale)).p_value
    assert p_value > 0.01 if uniform else p_value < 1e-6


@pytest.fixture(scope="module")
def counts():
    y = np.random.default_rng(3).poisson(2.5, size=5000)
    return y, poisson.cdf(y - 1, 2.5), poisson.cdf(y, 2.5)


def test_randomised_pit_of_counts_is_uniform_and_plain_cdf_values_are_not(counts):
    y, below, at = counts
    values = metrics.pit_discrete(below, at, torch.Generator().manual_seed(0))
    assert (values >= below).all()
    assert (values <= at).all()
    assert metrics.pit(values).p_value > 0.01
    assert metrics.pit(at).p_value < 1e-6
    wrong = metrics.pit_discrete(
        poisson.cdf(y - 1, 3.0), poisson.cdf(y, 3.0), torch.Generator().manual_seed(0)
    )
    assert metrics.pit(wrong).p_value < 1e-6


def test_randomised_pit_follows_its_generator_and_leaves_the_global_state(counts):
    _, below, at = counts
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (
        metrics.pit_discrete(below, at, torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_histogram_is_the_mean_of_the_stated_ramps(counts):
    _, below, at = (values[:50] for values in counts)

    def mean_reached(u):
        return np.mean(
            [0 if u <= b else 1 if u >= a else (u - b) / (a - b) for b, a in zip(below, at, strict=True)]
        )

    expected = [8 * (mean_reached((j + 1) / 8) - mean_reached(j / 8)) for j in range(8)]
    np.testing.assert_allclose(metrics.pit_histogram(below, at, 8), expected, rtol=1e-12)


def test_histogram_is_the_expectation_of_the_randomised_one(counts):
    _, below, at = counts
    heights = metrics.pit_histogram(below, at, 10)
    assert heights.mean() == pytest.approx(1, rel=1e-12)
    repeats = 50
    generator = torch.Generator().manual_seed(1)
    values = np.concatenate([metrics.pit_discrete(below, at, generator) for _ in range(repeats)])
    drawn = 10 * np.histogram(values, 10, (0, 1))[0] / len(values)
    np.testing.assert_allclose(heights, drawn, atol=5 * 10 * np.sqrt(0.1 * 0.9 / len(values)))


def test_histogram_is_flat_for_right_counts_and_a_u_for_too_narrow_ones(counts):
    y, below, at = counts
    np.testing.assert_allclose(metrics.pit_histogram(below, at, 10), 1, atol=5 * np.sqrt(10 / len(y)))
    wide = np.random.default_rng(4).negative_binomial(1, 1 / 3.5, size=5000)  # mean 2.5, variance 8.75
    heights = metrics.pit_histogram(poisson.cdf(wide - 1, 2.5), poisson.cdf(wide, 2.5), 10)
    assert min(heights[0], heights[-1]) > 1.5 > 0.9 > heights[3:7].max()


def test_histogram_of_continuous_values_is_the_plain_one():
    values = np.append(np.random.default_rng(5).random(200), [0.0, 1.0])
    expected = 7 * np.histogram(values, 7, (0, 1))[0] / 202
    np.testing.assert_allclose(metrics.pit_histogram(values, values, 7), expected, rtol=1e-12)
    np.testing.assert_array_equal(metrics.pit_histogram([0.5], [0.5], 2), [2, 0])  # closed on the right


def test_refusals():
    with pytest.raises(ValueError, match="cdf_values: expected values from 0 to 1, got 0 to 3"):
        metrics.pit([0.0, 3.0])
    with pytest.raises(ValueError, match="prob: expected a number strictly between 0 and 1, got 0"):
        metrics.pit([0.2], prob=0)
    with pytest.raises(
        ValueError, match=r"one shape, got cdf_below \(1,\) and cdf_at \(2,\); pass the same rows"
    ):
        metrics.pit_histogram([0.1], [0.2, 0.3])
    with pytest.raises(
        ValueError, match=r"cdf_below <= cdf_at, got 1 of 2 the other way round; pass F\(y - 1\) first"
    ):
        metrics.pit_discrete([0.1, 0.5], [0.2, 0.3], torch.Generator())
    with pytest.raises(ValueError, match="num_bins: expected a whole number of at least 1, got 0"):
        metrics.pit_histogram([0.1], [0.2], 0)
