"""CRPS against its integral, the double sum over draws, and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from bll_pyro import metrics


def crps_by_integral(cdf, y, low, high):
    """The definition, `integral (F(x) - [x >= y])^2 dx`, in two pieces because of the step."""
    below = quad(lambda x: cdf(x) ** 2, low, y, epsabs=1e-12, limit=400)[0]
    return below + quad(lambda x: (1 - cdf(x)) ** 2, y, high, epsabs=1e-12, limit=400)[0]


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=(40, 5, 2))
    x[5] = x[6]  # ties among the draws
    return x, rng.normal(1, 2, size=(5, 2))


@pytest.mark.parametrize("fair", [False, True])
def test_sample_is_the_double_sum(draws, fair):
    x, y = draws
    num_draws = len(x)
    pairs = np.abs(x[:, None] - x).sum((0, 1)) / (num_draws * (num_draws - fair))
    expected = np.abs(x - y).mean(0) - 0.5 * pairs
    np.testing.assert_allclose(metrics.crps_sample(x, y, fair=fair), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        metrics.crps_sample(x[:, :, 0], y[:, 0], fair=fair), expected[:, 0], rtol=1e-12
    )


def test_plain_sample_is_the_integral_of_the_empirical_distribution(draws):
    x, y = draws[0][:, 0, 0], draws[1][:1, 0]
    points = np.sort(np.concatenate([x, y]))
    middle = (points[1:] + points[:-1]) / 2
    empirical = np.mean(x[:, None] <= middle, axis=0)
    expected = np.sum((empirical - (middle >= y)) ** 2 * np.diff(points))
    assert metrics.crps_sample(x[:, None], y)[0] == pytest.approx(expected, rel=1e-12)


def test_plain_sample_is_that_of_torchmetrics(draws):
    pytest.importorskip("torchmetrics", "1.8", reason="earlier ones do not have it")
    from torchmetrics.functional.regression import continuous_ranked_probability_score

    x, y = draws[0][:, :, 0], draws[1][:, 0]
    theirs = continuous_ranked_probability_score(torch.tensor(x.T), torch.tensor(y))
    assert metrics.crps_sample(x, y).mean() == pytest.approx(float(theirs), rel=1e-12)


def test_one_draw_is_the_absolute_error():
    np.testing.assert_allclose(metrics.crps_sample([[1.0, 5.0]], [3.0, 4.0]), [2, 1])


def test_values_far_from_zero_lose_no_digits(draws):
    x, y = draws
    shift = 2.0**30
    far = metrics.crps_sample(np.round(x, 6) + shift, np.round(y, 6) + shift)
    near = metrics.crps_sample((np.round(x, 6) + shift) - shift, (np.round(y, 6) + shift) - shift)
    np.testing.assert_allclose(far, near, rtol=1e-12)


def test_fair_is_unbiased_and_plain_is_too_large_by_the_known_amount():
    rng = np.random.default_rng(1)
    num_draws, num_repeats, y, scale = 3, 40_000, 0.7, 1.3
    x, targets = rng.normal(0, scale, size=(num_draws, num_repeats)), np.full(num_repeats, y)
    truth = metrics.crps_normal(0.0, scale, [y])[0]
    excess = scale / np.sqrt(np.pi) / num_draws  # E|X - X'| / (2 S), and E|X - X'| = 2 scale / sqrt(pi)
    for fair, expected in ((True, truth), (False, truth + excess)):
        scores = metrics.crps_sample(x, targets, fair=fair)
        assert scores.mean() == pytest.approx(expected, abs=4 * scores.std() / np.sqrt(num_repeats))


@pytest.mark.parametrize(("loc", "scale", "y"), [(0, 1, 0), (1, 2, 4.5), (-3, 0.1, -2.9), (0, 5, -20)])
def test_normal_is_the_integral(loc, scale, y):
    expected = crps_by_integral(norm(loc, scale).cdf, y, loc - 12 * scale, max(y, loc) + 12 * scale)
    assert metrics.crps_normal(float(loc), float(scale), [y])[0] == pytest.approx(expected, abs=1e-8)


def test_normal_of_an_outlier_tends_to_the_absolute_error():
    assert metrics.crps_normal(0.0, 1e-3, [1e6])[0] == pytest.approx(1e6, rel=1e-8)


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_mixture_is_the_integral(weights):
    loc, scale, y = (
        np.array([[-2.0, 0.0], [0.5, 0.1], [3.0, 4.0]]),
        np.array([0.5, 1.0, 2.0]),
        np.array([0.3, -1.0]),
    )
    values = metrics.crps_normal_mixture(loc, scale, y, weights)
    shares = np.full(3, 1 / 3) if weights is None else np.array(weights)
    for n in range(2):

        def cdf(x, n=n):
            return float(shares @ norm.cdf(x, loc[:, n], scale))

        assert values[n] == pytest.approx(crps_by_integral(cdf, y[n], -30, 30), abs=1e-7)


def test_mixture_of_one_and_of_equals_is_the_normal():
    rng = np.random.default_rng(2)
    loc, scale, y = rng.normal(size=(6, 2)), rng.uniform(0.5, 2, size=(6, 2)), rng.normal(size=(6, 2))
    expected = metrics.crps_normal(loc, scale, y)
    np.testing.assert_allclose(metrics.crps_normal_mixture(loc[None], scale[None], y), expected, rtol=1e-12)
    same = metrics.crps_normal_mixture(np.stack([loc] * 4), np.stack([scale] * 4), y, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(same, expected, rtol=1e-10)


def test_mixture_with_weights_for_each_row_is_that_row_alone():
    rng = np.random.default_rng(3)
    loc, y = rng.normal(size=(3, 4)), rng.normal(size=4)
    weights = rng.dirichlet(np.ones(3), size=4).T
    values = metrics.crps_normal_mixture(loc, 0.7, y, weights)
    alone = [metrics.crps_normal_mixture(loc[:, [n]], 0.7, y[[n]], weights[:, n])[0] for n in range(4)]
    np.testing.assert_allclose(values, alone, rtol=1e-12)


def test_mixture_agrees_with_its_draws():
    rng = np.random.default_rng(4)
    loc, scale, y = np.array([[-1.0], [2.0]]), np.array([0.5, 1.5]), np.array([0.4])
    component = rng.integers(2, size=(50, 4000))
    x = rng.normal(loc[component, 0], scale[component])
    scores = metrics.crps_sample(x, np.full(4000, 0.4), fair=True)
    expected = metrics.crps_normal_mixture(loc, scale, y)[0]
    assert scores.mean() == pytest.approx(expected, abs=4 * scores.std() / np.sqrt(4000))


def test_refusals():
    with pytest.raises(
        ValueError, match=r"draws: expected shape \[any, 3\], .* got \(3, 7\); move that axis to the front"
    ):
        metrics.crps_sample(np.zeros((3, 7)), np.zeros(3))
    with pytest.raises(ValueError, match="two or more for the fair score, got 1; draw more, or fair=False"):
        metrics.crps_sample(np.zeros((1, 3)), np.zeros(3), fair=True)
    with pytest.raises(
        ValueError, match="scale: expected positive standard deviations, got 0; check its source"
    ):
        metrics.crps_normal(0.0, 0.0, [1.0])
    with pytest.raises(ValueError, match=r"scale: expected shape \(2,\) .* got \(2, 1\)"):
        metrics.crps_normal([0.0, 0.0], [[1.0], [1.0]], [1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"weights: expected a sum of 1 over the components, got 0.9; divide"
    ):
        metrics.crps_normal_mixture(np.zeros((2, 3)), 1.0, np.zeros(3), [0.5, 0.4])
    with pytest.raises(ValueError, match=r"scale: expected shape \(2, 3\) or \(2,\), got \(3,\); reshape"):
        metrics.crps_normal_mixture(np.zeros((2, 3)), np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="draws: expected finite values, got 1 bad of 2"):
        metrics.crps_sample([[np.nan], [1.0]], [0.0])
