"""The prior of a declaration, before any target: moments in closed form, agreement with a fit's tree, bad input."""

import arviz as az
import numpy as np
import pytest
import torch
import yaml
from scipy import special

import bll_pyro as bll

NUM_ROWS, NUM_FEATURES, NUM_DRAWS = 30, 40, 4000
L, P = bll.likelihoods, bll.priors


def features(scale=1.0):
    return scale * torch.randn(NUM_ROWS, NUM_FEATURES, generator=torch.Generator().manual_seed(0)).abs()


@pytest.mark.parametrize("standardize", [True, False])
def test_outputs_have_the_variance_of_the_prior(standardize):
    """``Var(f) = s^2 |h|^2 + bias_scale^2``: within five standard errors of a variance, of 60 numbers."""
    rows = features()
    layer = bll.LastLayer(L.Categorical(2), P.Normal(0.3), bias_scale=2.0, standardize=standardize)
    tree = bll.prior_predictive(layer, rows, num_draws=NUM_DRAWS)
    if standardize:
        rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    expected = 0.09 * rows.square().sum(1, keepdim=True) + 4.0
    found = tree["prior_predictive"]["f"].values[0].var(0)
    np.testing.assert_allclose(found, expected.expand(-1, 2).numpy(), rtol=5 * np.sqrt(2 / NUM_DRAWS))


def test_probabilities_entropies_and_targets_follow_from_the_outputs():
    layer = bll.LastLayer(L.Categorical(3), P.Normal(0.2))
    group = bll.prior_predictive(layer, features(), num_draws=NUM_DRAWS, class_names=["a", "b", "c"])
    group = group["prior_predictive"]
    probs = special.softmax(group["f"].values.astype(float), -1)
    np.testing.assert_allclose(group["class_probs"].values, probs, atol=1e-5)
    np.testing.assert_allclose(group["entropy"].values, special.entr(probs).sum(-1), atol=1e-5)
    share = np.stack([(group["y"].values[0] == k).mean(0) for k in range(3)], -1)
    assert np.abs(share - probs[0].mean(0)).max() < 5 * 0.5 / np.sqrt(NUM_DRAWS)
    assert list(group["class"].values) == list(group["output"].values) == ["a", "b", "c"]


def test_a_unit_prior_on_many_raw_features_is_certain_before_it_has_seen_a_label():
    """2,048 features of size 1: outputs of size 45. A scale of 1/45 says nothing yet, which is what a prior should say."""
    rows = torch.rand(20, 2048, generator=torch.Generator().manual_seed(1)) + 0.5
    entropy = {}
    for scale in (1.0, 2048**-0.5):
        layer = bll.LastLayer(L.Categorical(10), P.Normal(scale), bias_scale=1e-3, standardize=False)
        tree = bll.prior_predictive(layer, rows, num_draws=200)
        entropy[scale] = float(tree["prior_predictive"]["entropy"].mean())
    assert entropy[1.0] < 0.05 * np.log(10)
    assert entropy[2048**-0.5] > 0.7 * np.log(10)


LIKELIHOODS = {
    "gaussian": (L.Gaussian(), torch.linspace(20.0, 30.0, NUM_ROWS)),
    "gaussian, known noise": (L.Gaussian(noise_scale=2.0), torch.linspace(20.0, 30.0, NUM_ROWS)),
    "two numbers": (L.HeteroscedasticGaussian(), torch.linspace(20.0, 30.0, 2 * NUM_ROWS).view(-1, 2)),
    "tied numbers": (L.MultivariateGaussian(), torch.linspace(20.0, 30.0, 3 * NUM_ROWS).view(-1, 3).cos()),
    "student-t": (L.StudentT(), torch.linspace(20.0, 30.0, NUM_ROWS)),
    "classes": (L.Categorical(3), torch.arange(NUM_ROWS) % 3),
    "ordinal": (L.Ordinal(3), torch.arange(NUM_ROWS) % 3),
    "labels": (L.Bernoulli(), torch.arange(2 * NUM_ROWS).view(-1, 2) % 2),
    "counts": (L.Poisson(), torch.arange(NUM_ROWS)),
    "counts, wide": (L.NegativeBinomial(), torch.arange(NUM_ROWS)),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_it_is_the_prior_of_a_fit(name):
    """The same draws of sites and targets as in the tree of a fit with that scale, on the same rows."""
    likelihood, targets = LIKELIHOODS[name]
    layer = bll.LastLayer(likelihood, P.Normal(0.1), bias_scale=1.0)
    fit = bll.fit(layer, (features(), targets), inference=bll.SVI(num_epochs=2))
    of_fit = fit.to_datatree(features(), targets, num_draws=2, prior=50, seed=3)
    tree = bll.prior_predictive(layer, features(), targets, num_draws=50, seed=3, weights=True)
    for site in of_fit["prior"].data_vars:
        np.testing.assert_allclose(
            tree["prior"][site].values, of_fit["prior"][site].values, rtol=1e-5, atol=1e-6
        )
    assert tree["prior"]["weight"].dims == ("chain", "draw", "output", "feature")
    expected = of_fit["prior_predictive"]["y"]
    assert tree["prior_predictive"]["y"].dims == expected.dims
    np.testing.assert_allclose(tree["prior_predictive"]["y"].values, expected.values, rtol=1e-4, atol=1e-3)
    assert tree["observed_data"].equals(of_fit["observed_data"])
    assert ("entropy" in tree["prior_predictive"]) == (likelihood.is_discrete or likelihood.is_binary)


@pytest.mark.filterwarnings("ignore:Variables y in")
def test_arviz_draws_it():
    import matplotlib.pyplot as plt

    likelihood, targets = LIKELIHOODS["gaussian"]
    tree = bll.prior_predictive(bll.LastLayer(likelihood, P.Normal(0.1)), features(), targets, num_draws=50)
    drawn = az.plot_ppc_dist(tree, group="prior_predictive")
    assert drawn.viz.data_vars
    plt.close("all")


def test_learned_scales_start_at_one_or_are_given():
    layer = bll.LastLayer(L.Categorical(3), bias=False, standardize=False)
    rows = features()
    spread = {}
    for given in (None, {"tau": 0.2}):
        tree = bll.prior_predictive(layer, rows, num_draws=NUM_DRAWS, learned=given)
        assert yaml.safe_load(tree.attrs["learned"])["tau"] == pytest.approx((given or {"tau": 1.0})["tau"])
        spread[given is None] = float(tree["prior_predictive"]["f"].std())
    assert spread[False] == pytest.approx(0.2 * spread[True], rel=1e-4)


def test_the_callers_random_state_is_left_alone_and_draws_repeat():
    layer = bll.LastLayer(L.Ordinal(3), P.Horseshoe())
    before = torch.get_rng_state()
    first, again = (bll.prior_predictive(layer, features(), num_draws=20) for _ in range(2))
    assert first.equals(again) and torch.equal(before, torch.get_rng_state())
    assert {"tau", "c2", "cutpoints"} == set(first["prior"].data_vars)


BAD = {
    "no units": (L.Gaussian(), {}, "expected targets, whose centre and scale"),
    "images": (L.Poisson(), {"features": torch.zeros(4, 3, 8, 8)}, r"features of shape \[N, D\]"),
    "not finite": (L.Poisson(), {"features": torch.full((4, 3), torch.nan)}, "NaN"),
    "no draws": (L.Poisson(), {"num_draws": 0}, "whole number"),
    "unknown": (L.Poisson(), {"learned": {"sigma": 1.0}}, r"among \['tau'\]"),
    "negative": (L.Poisson(), {"learned": {"tau": -1.0}}, "expected positive tau"),
    "too much": (L.Categorical(10), {"num_draws": 10_000_000}, "fits in 4 GiB"),
    "wrong label": (L.Categorical(3), {"targets": torch.full((NUM_ROWS,), 7)}, "labels from 0 to 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong(case):
    likelihood, options, message = BAD[case]
    options = {"features": features()} | options
    with pytest.raises(ValueError, match=message):
        bll.prior_predictive(bll.LastLayer(likelihood), **options)


@pytest.mark.unchecked
def test_of_a_fit_it_names_the_tree():
    with pytest.raises(TypeError, match="to_datatree"):
        bll.prior_predictive("layer", features())
