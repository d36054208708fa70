"""The tree of a recalibrated fit: predictions follow the recalibration, log densities stay those of the model."""

import math
from dataclasses import replace

import arviz as az
import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.prediction import NoiseFactor, PredictiveTemperature

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(30, 3, generator=GENERATOR)
F = X @ torch.tensor([[1.0, -0.5], [0.3, 1.0], [-1.0, 0.2]])
VALUES = 3 + 4 * (F[:, 0] + 0.5 * torch.randn(30, generator=GENERATOR))
LABELS = torch.cat([torch.zeros(30, 1), F + torch.randn(30, 2, generator=GENERATOR)], 1).argmax(-1)
L, NUM_DRAWS = bll.likelihoods, 4000
CASES = {
    "classes": (L.Categorical(3), LABELS, PredictiveTemperature(0.5)),
    "ordered": (L.Ordinal(3), LABELS, PredictiveTemperature(2.0)),
    "label": (L.Bernoulli(), (LABELS > 0).long(), PredictiveTemperature(0.5)),
    "two labels": (
        L.Bernoulli(),
        torch.stack([LABELS > 0, LABELS > 1], -1).long(),
        PredictiveTemperature(2.0),
    ),
    "exact": (L.Gaussian(), VALUES, NoiseFactor(2.0)),
    "HeteroscedasticGaussian": (L.HeteroscedasticGaussian(), VALUES, NoiseFactor(0.5)),
}


@pytest.fixture(scope="module", params=CASES)
def fit_and_trees(request):
    likelihood, targets, recalibration = CASES[request.param]
    inference = bll.Exact() if request.param == "exact" else bll.SVI(bll.guides.FullRank())
    fit = bll.fit(bll.LastLayer(likelihood, bll.priors.Normal(1.0)), (X, targets), inference=inference)
    options = {"num_draws": NUM_DRAWS, "prior": 20, "class_probs": likelihood.is_discrete}
    changed = replace(fit, recalibration=recalibration)
    return changed, fit.to_datatree(X, targets, **options), changed.to_datatree(X, targets, **options)


def test_new_targets_follow_the_recalibrated_prediction(fit_and_trees):
    fit, _, tree = fit_and_trees
    drawn, prediction = tree["posterior_predictive"]["y"].values[0], fit.predict(X)
    if hasattr(prediction, "mixture"):
        scale = prediction.scale.numpy()
        np.testing.assert_allclose(
            drawn.mean(0), prediction.mean, atol=float(5 * scale.max() / math.sqrt(NUM_DRAWS))
        )
        # the standard error of a standard deviation of tails like these is below 2 / sqrt(S)
        np.testing.assert_allclose(drawn.std(0) / scale, 1, atol=5 * 2 / math.sqrt(NUM_DRAWS))
        return
    probs = prediction.probs.numpy()
    error = 5 * 0.5 / math.sqrt(NUM_DRAWS)
    if not fit.layer.likelihood.is_discrete:
        np.testing.assert_allclose(drawn.mean(0), probs, atol=error)
        return
    shares = np.stack([(drawn == c).mean(0) for c in range(3)], -1)
    np.testing.assert_allclose(shares, probs, atol=error)
    np.testing.assert_allclose(tree["class_probs"]["y"].values[0].mean(0), probs, atol=error)
    np.testing.assert_allclose(tree["class_probs"]["y"].values.sum(-1), 1, atol=1e-5)


def test_what_weights_draws_is_of_the_model(fit_and_trees):
    """So ArviZ's own leave-one-out is that of the fit before, and its attributes say what was done."""
    fit, before, after = fit_and_trees
    for group in ("posterior", "log_likelihood", "log_prior", "sample_stats", "prior", "prior_predictive"):
        for name in before[group].data_vars:
            np.testing.assert_array_equal(before[group][name], after[group][name])
    assert before.attrs["recalibration"] == ""
    assert type(fit.recalibration).__name__ in after.attrs["recalibration"]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_takes_it():
    likelihood, targets, recalibration = CASES["classes"]
    layer = bll.LastLayer(likelihood, bll.priors.Normal(1.0))
    fit = bll.fit(layer, (X, targets), inference=bll.Laplace())
    tree = replace(fit, recalibration=recalibration).to_datatree(X, targets)
    found = az.loo(tree, reff=1.0)
    assert found.elpd == pytest.approx(az.loo(fit.to_datatree(X, targets), reff=1.0).elpd)
