"""Quantiles, intervals, CRPS and PIT of predictions, against SciPy, closed forms and brute force on the mixture's draws."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro import metrics
from bll_pyro.gaussian import OutputDraws, OutputGaussian
from bll_pyro.likelihoods.poisson import PoissonCounts
from bll_pyro.prediction import OrdinalPrediction, QuasiMonteCarlo, ValuePrediction
from bll_pyro.prediction.classes import predict_classes
from bll_pyro.prediction.mixtures import count_crps, shortest_range
from bll_pyro.prediction.values import Mixture, predict_values
from bll_pyro.scope import generator

lk = bll.likelihoods
N = 6
F64 = torch.float64
RANDOM = generator(0)
MEAN = torch.linspace(-1, 2, N, dtype=F64)[:, None]
SPREAD = torch.linspace(0.1, 0.6, N, dtype=F64)[:, None]


def prediction(likelihood: lk.Likelihood, outputs: Any = None, **noise: Tensor) -> ValuePrediction:
    """Prediction in units where targets are ``3 y + 10`` (counts: y)."""
    if outputs is None:
        wide = isinstance(likelihood, lk.HeteroscedasticGaussian)
        outputs = OutputGaussian(
            torch.cat([MEAN, 0.3 * MEAN - 1], 1) if wide else MEAN,
            torch.cat([SPREAD, SPREAD], 1) if wide else SPREAD,
        )
    center, scale = (0.0, 1.0) if likelihood.is_count else (10.0, 3.0)
    known = {name: value[:, None, None].to(F64) for name, value in noise.items()}
    units = torch.tensor([center], dtype=F64), torch.tensor([scale], dtype=F64)
    return predict_values(Mixture(outputs, likelihood, known, *units, QuasiMonteCarlo(64)), single=True)


NOISES = 0.4 + 0.3 * torch.rand(64, generator=RANDOM, dtype=F64)
REAL = {
    "Gaussian": prediction(lk.Gaussian(0.5)),
    "Gaussian, unknown noise": prediction(lk.Gaussian(), noise_scale=NOISES),
    "HeteroscedasticGaussian": prediction(lk.HeteroscedasticGaussian()),
    "MultivariateGaussian": prediction(lk.MultivariateGaussian([[0.25]])),
    "StudentT": prediction(lk.StudentT(df=4.0, noise_scale=0.3)),
    "two modes": prediction(
        lk.Gaussian(0.2), OutputDraws(torch.tensor([-1.0, -1.0, 1.0], dtype=F64)[:, None, None] + MEAN)
    ),
}
COUNTS = {
    "Poisson": prediction(lk.Poisson()),
    "NegativeBinomial": prediction(lk.NegativeBinomial(concentration=2.0)),
}
PROBS = torch.softmax(torch.randn(N, 5, generator=RANDOM, dtype=F64), -1)
ORDINAL = OrdinalPrediction(*[torch.zeros(N)] * 3, PROBS, lk.Ordinal(5))


@pytest.mark.parametrize("name", REAL)
def test_quantiles_and_equal_tailed_intervals(name: str) -> None:
    pred = REAL[name]
    for q in (0.01, 0.5, 0.95):
        assert torch.allclose(pred.cdf(pred.quantile(q)), torch.full((N,), q, dtype=F64), atol=1e-6)
    low, high = pred.interval(0.8)
    assert torch.allclose(pred.cdf(high) - pred.cdf(low), torch.full((N,), 0.8, dtype=F64), atol=1e-6)


@pytest.mark.parametrize("prob", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", REAL)
@pytest.mark.thinned(5)
def test_shortest_interval(name: str, prob: float) -> None:
    """It holds its probability, and none of many other intervals with it is shorter."""
    pred = REAL[name]
    low, high = pred.interval(prob, kind="hdi")
    assert torch.allclose(pred.cdf(high) - pred.cdf(low), torch.full((N,), prob, dtype=F64), atol=1e-6)
    others = [pred.quantile(p + prob) - pred.quantile(p) for p in np.linspace(1e-3, 1 - prob - 1e-3, 41)]
    best = torch.stack(others).amin(0)
    assert bool(((high - low) <= best * (1 + 1e-6)).all())
    equal_low, equal_high = pred.interval(prob)
    if name != "two modes" and "Hetero" not in name:  # symmetric: both are the same
        assert torch.allclose(low, equal_low, atol=0.05) and torch.allclose(high, equal_high, atol=0.05)


def test_shortest_interval_of_two_modes_takes_the_heavier_one() -> None:
    """With 2/3 around -1 and 1/3 around +1, 60 percent lie in the first."""
    low, high = REAL["two modes"].interval(0.6, kind="hdi")
    left = 10 + 3 * (MEAN[:, 0] - 1)
    assert bool((low < left).all() and (left < high).all() and (high < left + 3).all())


@pytest.mark.parametrize("prob", [0.5, 0.9])
@pytest.mark.parametrize("name", COUNTS)
def test_intervals_of_counts(name: str, prob: float) -> None:
    """Against all ranges of whole numbers, one by one."""
    pred = COUNTS[name]
    for q in (0.05, 0.5, 0.9):
        found = pred.quantile(q)
        assert torch.equal(found, found.round())
        assert bool((pred.cdf(found) >= q - 1e-9).all() and (pred.cdf(found - 1) < q).all())
    table = torch.stack([pred.cdf(torch.full((N,), k, dtype=F64)) for k in range(-1, 60)], -1).numpy()
    low, high = pred.interval(prob, kind="hdi")
    for row in range(N):
        sizes = [
            (j - i, table[row, i] - table[row, j], i)
            for i in range(60)
            for j in range(i + 1, 61)
            if table[row, j] - table[row, i] >= prob - 1e-9
        ]
        size, _, first = min(sizes)
        assert (int(low[row]), int(high[row])) == (first, first + size - 1)


@pytest.mark.slow
def test_crps_of_real_values_by_brute_force() -> None:
    """Against ``E|Y - y| - E|Y - Y'| / 2`` over draws of the predictive."""
    num_draws = 20_000
    for pred in REAL.values():
        draws = pred.sample(num_draws, seed=3)
        for offset in (-30.0, -2.0, 0.0, 0.5, 6.0):
            targets = pred.mean + offset
            error = 5 * draws.std(0).numpy() / np.sqrt(num_draws)
            expected = metrics.crps_sample(draws, targets, fair=True)
            assert np.all(np.abs(pred.crps(targets).numpy() - expected) < error)


@pytest.mark.parametrize("name", ["Gaussian", "HeteroscedasticGaussian"])
def test_crps_in_closed_form(name: str) -> None:
    pred = REAL[name]
    for offset in (-30.0, -2.0, 0.0, 0.5, 6.0):
        targets = pred.mean + offset
        found = pred.crps(targets)
        if name == "Gaussian":
            scale = 3 * (SPREAD[:, 0].square() + 0.25).sqrt()
            closed = metrics.crps_normal(pred.mean, scale, targets)
            assert np.allclose(found, closed, rtol=2e-4)
        if name == "HeteroscedasticGaussian":
            parts = lk.HeteroscedasticGaussian().components(pred.mixture.outputs, 64)
            loc, scale = 10 + 3 * parts.mean[..., 0], 3 * parts.stddev[..., 0]
            assert np.allclose(found, metrics.crps_normal_mixture(loc, scale, targets), rtol=5e-4)


@pytest.mark.parametrize("name", COUNTS)
def test_crps_of_counts(name: str) -> None:
    """Against the mean over draws ``E|Y - y| - E|Y - Y'| / 2`` of the predictive."""
    pred, num_draws = COUNTS[name], 40_000
    draws = pred.sample(num_draws, seed=1)
    for targets in (torch.zeros(N, dtype=F64), torch.tensor([1, 0, 3, 2, 9, 4], dtype=F64)):
        expected = metrics.crps_sample(draws, targets, fair=True)
        error = 4 * np.sqrt(draws.var(0).numpy() / num_draws)
        assert np.all(np.abs(pred.crps(targets).numpy() - expected) < error + 1e-6)


def test_ordinal_predictions_have_a_distribution_function() -> None:
    cumulative = PROBS.cumsum(-1)
    for q in (0.1, 0.5, 0.9):
        expected = [int(np.searchsorted(row, q)) for row in cumulative.numpy()]
        assert ORDINAL.quantile(q).tolist() == expected
    low, high = ORDINAL.interval(0.8, kind="hdi")
    for row in range(N):
        held = {
            (j - i, -float(PROBS[row, i:j].sum()), i): (i, j - 1)
            for i in range(5)
            for j in range(i + 1, 6)
            if float(PROBS[row, i:j].sum()) >= 0.8
        }
        assert (int(low[row]), int(high[row])) == held[min(held)]
    labels = torch.tensor([0, 4, 2, 1, 3, 2])
    step = (torch.arange(5) >= labels[:, None]).to(F64)
    assert torch.allclose(ORDINAL.crps(labels), (cumulative - step).square().sum(-1))
    assert torch.allclose(ORDINAL.cdf(labels), cumulative.gather(1, labels[:, None])[:, 0])
    assert bool((ORDINAL.cdf(labels - 5) == 0).all())


def test_predictions_of_classes_without_order_have_none() -> None:
    pred = predict_classes(OutputGaussian(torch.zeros(2, 3)), lk.Categorical(3), {}, QuasiMonteCarlo(8))
    assert not hasattr(pred, "quantile") and not isinstance(pred, OrdinalPrediction)


@pytest.mark.parametrize("name", [*REAL, *COUNTS])
@pytest.mark.thinned(4)
def test_pit_of_the_predictions_own_draws_is_uniform(name: str) -> None:
    pred = (REAL | COUNTS)[name]
    draws = pred.sample(2000, seed=2)
    values = torch.cat([pred.pit(row, seed=i) for i, row in enumerate(draws[:400])])
    assert bool((values >= 0).all() and (values <= 1).all())
    assert metrics.pit(values).p_value > 1e-3


def test_pit_of_ordinal_labels_is_uniform() -> None:
    labels = torch.multinomial(PROBS.repeat(400, 1), 1, generator=generator(3))[:, 0].view(400, N)
    values = torch.cat([ORDINAL.pit(row, seed=i) for i, row in enumerate(labels)])
    assert metrics.pit(values).p_value > 1e-3


def test_several_targets_keep_their_axis() -> None:
    outputs = OutputGaussian(
        torch.randn(N, 2, generator=RANDOM, dtype=F64), torch.full((N, 2), 0.3, dtype=F64)
    )
    units = torch.tensor([1.0, -5.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64)
    both = predict_values(
        Mixture(outputs, lk.Gaussian((0.5, 0.2)), {}, *units, QuasiMonteCarlo(8)), single=False
    )
    low, high = both.interval(0.9, kind="hdi")
    scale = units[1] * (0.09 + torch.tensor([0.25, 0.04], dtype=F64)).sqrt()
    assert torch.allclose(high - low, (2 * scipy.stats.norm.ppf(0.95) * scale).expand(N, 2), rtol=1e-5)
    targets = both.mean + 0.1
    assert np.allclose(
        both.crps(targets), metrics.crps_normal(both.mean, scale.expand(N, 2), targets), rtol=2e-4
    )
    assert torch.allclose(both.pit(both.mean), torch.full((N, 2), 0.5, dtype=F64), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.interval(0.9, kind="central"), 'expected "equal_tailed" or "hdi", got'),
        (lambda p: p.interval(90), "expected a number between 0 and 1, got 90"),
        (lambda p: p.quantile(0.0), "expected a number between 0 and 1, got 0.0"),
        (lambda p: p.crps(torch.zeros(2)), "expected one for each of the 6 predicted rows"),
    ],
)
@pytest.mark.unchecked
def test_bad_arguments(call: Any, message: str) -> None:
    for pred in (REAL["Gaussian"], COUNTS["Poisson"], ORDINAL):
        with pytest.raises(ValueError, match=message):
            call(pred)


def test_targets_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"expected targets of shape \[6\], got \[6, 2\]"):
        REAL["Gaussian"].crps(torch.zeros(N, 2))
    assert math.isfinite(float(REAL["Gaussian"].crps(torch.zeros(N)).sum()))


@pytest.mark.parametrize(
    ("rate", "spread", "targets"),
    [
        (3.0, 0.3, [0, 1, 3, 9]),
        (200.0, 0.1, [0, 150, 200, 900]),
        (1e5, 0.003, [9e4, 1e5, 100_200]),
        (1e5, 0.1, [5e4, 1e5, 2e5]),
    ],
)
def test_crps_of_counts_of_any_size(rate: float, spread: float, targets: list[float]) -> None:
    """Against the sum over all whole numbers with SciPy's distribution function."""
    rates = rate * np.exp(spread * scipy.stats.norm.ppf((np.arange(64) + 0.5) / 64))
    values = torch.tensor(targets, dtype=torch.float64)[:, None]
    counts = torch.tensor(rates)[:, None, None].expand(-1, *values.shape)
    found = count_crps(PoissonCounts(counts, validate_args=False), values, torch.full_like(values, rate))
    whole = np.arange(int(max(rates.max() + 8 * rates.max() ** 0.5 + 8, max(targets))) + 2)
    reached = np.mean([scipy.stats.poisson.cdf(whole, r) for r in rates], 0)
    expected = [((reached - (whole >= y)) ** 2).sum() for y in targets]
    np.testing.assert_allclose(found[:, 0], expected, rtol=2e-6)


def test_shortest_ranges_of_large_and_small_counts_together() -> None:
    """Against all ranges of whole numbers: with the probability, and as short up to a thousandth."""
    scales = np.exp(0.1 * scipy.stats.norm.ppf((np.arange(64) + 0.5) / 64))
    sizes = torch.tensor([[4.0], [2e4]], dtype=torch.float64)
    parts = PoissonCounts(torch.tensor(scales)[:, None, None] * sizes, validate_args=False)
    lower, upper = shortest_range(parts, 0.8, sizes)
    for row, size in enumerate(sizes.flatten().tolist()):
        whole = np.arange(int(2 * size) + 20)
        reached = np.mean([scipy.stats.poisson.cdf(whole, size * scale) for scale in scales], 0)
        below = np.concatenate([[0.0], reached])[:-1]
        ends = np.searchsorted(reached, below + 0.8 - 1e-12)
        shortest = (ends - whole)[ends < len(whole)].min()
        first, last = int(lower[row]), int(upper[row])
        assert reached[last] - below[first] >= 0.8 - 1e-6
        assert last - first <= shortest * 1.001


@pytest.mark.parametrize("size", [1e5, 1e7])
def test_large_counts_are_fitted_in_float64(size: float) -> None:
    """Features in float32 give the evidence, and the mean, of those in float64."""
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 2)).astype("float32")
    targets = random.poisson(size * np.exp(0.3 * features[:, 0]))
    layer = bll.LastLayer(bll.likelihoods.Poisson())
    found = [
        bll.fit(layer, (rows, targets), inference=bll.Laplace()).log_evidence
        for rows in (features, features.astype(float))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    prediction = bll.fit(layer, (features, targets)).predict(features)
    assert float(prediction.mean.sum()) == pytest.approx(targets.sum(), rel=1e-4)


def test_log_densities_and_quantiles_of_large_counts() -> None:
    """Of one Poisson, whose rate is known: in float32 log densities of counts of 1e6 are off by whole nats."""
    targets = np.random.default_rng(0).poisson(1e6, 200)
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Poisson()), (np.zeros((200, 1)), targets), inference=bll.Laplace()
    )
    prediction = fit.predict(np.zeros((3, 1)))
    rate = float(prediction.mean[0])
    expected = scipy.stats.poisson.logpmf(targets[:3], rate)
    np.testing.assert_allclose(prediction.log_prob(targets[:3]), expected, atol=0.02)
    assert float(prediction.quantile(0.9)[0]) == pytest.approx(scipy.stats.poisson.ppf(0.9, rate), rel=1e-5)
