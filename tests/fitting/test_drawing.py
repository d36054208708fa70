"""Draws of the mean: one draw of the weights for all rows, and on average the prediction."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.prediction import PredictiveTemperature

L, P = bll.likelihoods, bll.priors
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(80, 3, generator=GENERATOR)
F = X @ torch.tensor([1.0, -0.5, 0.0])
NOISE = torch.randn(80, 2, generator=GENERATOR)
TWO = torch.stack([5 + 2 * F, -F], -1) + 0.3 * NOISE
EXPOSURE = 0.5 + torch.rand(80, generator=GENERATOR)
COUNTS = torch.poisson(EXPOSURE * (1 + F).exp().clamp_max(50), generator=GENERATOR)
LABELS = (F > 0).long() + (F > 0.7)
SHORT = bll.SVI(num_epochs=60)
CASES = {
    "Gaussian": (L.Gaussian(), TWO[:, 0], bll.Exact(), ()),
    "two numbers": (L.Gaussian(), TWO, SHORT, (2,)),
    "correlated numbers": (L.MultivariateGaussian(), TWO, SHORT, (2,)),
    "HeteroscedasticGaussian": (L.HeteroscedasticGaussian(), TWO[:, 0], SHORT, ()),
    "StudentT": (L.StudentT(), TWO[:, 0], bll.SVI(bll.guides.FullRank(), num_epochs=60), ()),
    "Categorical": (L.Categorical(3), LABELS, bll.Laplace(), (3,)),
    "Ordinal": (L.Ordinal(3), LABELS, bll.SVI(bll.guides.FullRank(), num_epochs=60), (3,)),
    "Bernoulli": (L.Bernoulli(), (F > 0).long(), SHORT, ()),
    "two labels": (L.Bernoulli(), torch.stack([F > 0, F > 1], -1).long(), SHORT, (2,)),
    "Poisson": (L.Poisson(), COUNTS, bll.Laplace(), ()),
    "NegativeBinomial": (L.NegativeBinomial(), COUNTS, SHORT, ()),
    "flow": (L.Gaussian(), TWO[:, 0], bll.SVI(bll.guides.Flow(), num_epochs=5), ()),
    "point": (L.Categorical(3), LABELS, bll.SVI(bll.guides.MAP(), num_epochs=20), (3,)),
}
NUM_DRAWS = 4000


@pytest.fixture(scope="module")
def fits():
    """The fit of a case, made when it is first asked for."""
    made = {}

    def of(case):
        if case not in made:
            likelihood, targets, inference, _ = CASES[case]
            data = bll.Data((X, targets), exposure=EXPOSURE if likelihood.is_count else None)
            made[case] = bll.fit(bll.LastLayer(likelihood, P.Normal(1.0)), data, inference=inference)
        return made[case]

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.thinned(3)
def test_the_mean_of_the_draws_is_the_prediction(fits, case):
    """Within five standard errors of the draws, and the error of the prediction's own integration."""
    fit, shape = fits(case), CASES[case][3]
    exposure = EXPOSURE if fit.layer.likelihood.is_count else None
    found = fit.draw(X, NUM_DRAWS, exposure=exposure)
    assert found.shape == (NUM_DRAWS, len(X), *shape)
    prediction = fit.predict(X, exposure=exposure)
    expected = prediction.mean if hasattr(prediction, "mean") else prediction.probs
    error = found.std(0) / math.sqrt(NUM_DRAWS)
    tolerance = 5 * error + 2e-3 * expected.abs() + 2e-3 * found.std(0) + 1e-4
    assert bool(((found.mean(0) - expected).abs() <= tolerance).all())


@pytest.mark.parametrize("case", ["Gaussian", "Categorical", "flow"])
def test_a_draw_is_one_function_of_the_inputs(fits, case):
    fit = fits(case)
    whole = fit.draw(X, 7, seed=2)
    torch.testing.assert_close(fit.draw(X[:5], 7, seed=2), whole[:, :5])
    torch.testing.assert_close(fit.draw(X.flip(0), 7, seed=2), whole.flip(1))
    assert torch.equal(fit.draw(X, 7, seed=2), whole)
    assert not torch.equal(fit.draw(X, 7, seed=3), whole)


def test_the_epistemic_variance_is_that_between_draws(fits):
    fit = fits("Gaussian")
    between = fit.draw(X, NUM_DRAWS).var(0)
    torch.testing.assert_close(between, fit.predict(X).epistemic, rtol=6 * math.sqrt(2 / NUM_DRAWS), atol=0)


def test_a_draw_of_a_linear_layer_is_linear_in_the_inputs(fits):
    fit = fits("Gaussian")
    first, second, middle = fit.draw(torch.stack([X[0], X[1], (X[0] + X[1]) / 2]), 20).unbind(1)
    torch.testing.assert_close((first + second) / 2, middle, rtol=1e-4, atol=1e-4)


def test_exposures_and_backbones_and_blocks(fits, monkeypatch):
    counts = fits("Poisson")
    one = counts.draw(X, 10)
    torch.testing.assert_close(counts.draw(X, 10, exposure=EXPOSURE), one * EXPOSURE)
    torch.testing.assert_close(counts.draw(bll.Data(X, exposure=EXPOSURE), 10), one * EXPOSURE)
    network = nn.Identity()
    layer = bll.LastLayer(L.Poisson(), P.Normal(1.0), standardize="columns")
    through = bll.fit(
        layer, bll.Data((X, COUNTS), exposure=EXPOSURE), backbone=network, inference=bll.Laplace()
    )
    monkeypatch.setattr("bll_pyro.fitting.drawing.NUMBERS_AT_ONCE", 30)
    torch.testing.assert_close(
        through.draw(X, 10, exposure=EXPOSURE, batch_size=32), one * EXPOSURE, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("case", ["Categorical", "Ordinal", "Bernoulli", "two labels", "point"])
@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_draws_of_a_recalibrated_fit_average_to_its_prediction(fits, case, temperature):
    """And a draw is one function of the inputs as before."""
    fit = replace(fits(case), recalibration=PredictiveTemperature(temperature))
    found, expected = fit.draw(X, NUM_DRAWS), fit.predict(X).probs
    error = found.std(0) / math.sqrt(NUM_DRAWS)
    assert bool(((found.mean(0) - expected).abs() <= 5 * error + 2e-3).all())
    assert float((fits(case).draw(X, NUM_DRAWS).mean(0) - expected).abs().max()) > 0.02
    torch.testing.assert_close(
        fit.draw(X[:5], 7, seed=2), fit.draw(X, 7, seed=2)[:, :5], atol=1e-5, rtol=1e-4
    )


def test_a_noise_factor_changes_no_mean(fits):
    numbers = fits("Gaussian")
    torch.testing.assert_close(bll.calibrate(numbers, X, TWO[:, 0]).draw(X, 5), numbers.draw(X, 5))
    with pytest.raises(ValueError, match=r"draw\(num_draws=...\): expected a whole number >= 1, got 0"):
        numbers.draw(X, 0)
