"""Simulation-based calibration: uniform where the inference is right, and not where it cannot be."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

import bll_pyro as bll
from bll_pyro.simulation.ranks import uniformity

L, G, P = bll.likelihoods, bll.guides, bll.priors
pytestmark = pytest.mark.sbc


def features(num_rows=20):
    """Three features with correlation 0.92."""
    random = torch.Generator().manual_seed(0)
    common = torch.randn(num_rows, 1, generator=random, dtype=torch.float64)
    return common + 0.3 * torch.randn(num_rows, 3, generator=random, dtype=torch.float64)


def layer(noise=0.5):
    return bll.LastLayer(L.Gaussian(noise), prior=P.Normal(1.0), bias_scale=1.0)


def calibrated(inference, num_simulations=40, declared=None, **options):
    options = {"num_processes": 1, "num_draws": 50, **options}
    return bll.sbc(declared or layer(), inference, features(), num_simulations, **options)


@pytest.fixture(scope="module")
def exact():
    return calibrated(bll.Exact(), 100)


@pytest.fixture(scope="module")
def plain():
    return calibrated(bll.SVI(G.Diagonal(principal_axes=False), num_epochs=40))


def test_exact_inference_is_uniform(exact):
    assert exact.attrs["p_value"] > 0.05
    for name, pit in exact["prior_sbc"].data_vars.items():
        for values in pit.values.reshape(100, -1).T:
            assert stats.kstest(values, "uniform").pvalue > 0.01, name


def test_exact_inference_with_unknown_noise_is_uniform():
    found = calibrated(bll.Exact(), 80, declared=layer(None))
    assert found.attrs["p_value"] > 0.05
    assert set(found["ranks"].data_vars) == {"weight", "bias", "noise_scale", "log_joint"}


@pytest.mark.slow
def test_full_rank_is_uniform():
    found = calibrated(bll.SVI(G.FullRank(), num_epochs=60, learning_rate=0.05))
    assert found.attrs["p_value"] > 0.05, found["uniformity"]


def test_plain_mean_field_on_correlated_features_is_not_uniform(plain):
    """Too narrow: the truth lies outside the draws far too often, and the test and the picture's data show it."""
    assert plain.attrs["p_value"] < 1e-4
    assert float(plain["uniformity"]["weight"].max()) < 0.01
    ranks = plain["ranks"]["weight"].values
    outside = ((ranks <= 2) | (ranks >= 48)).mean()
    assert outside > 0.3  # a uniform rank does so in 6 of 51 cases


def test_principal_axes_mend_mean_field():
    """For a Gaussian likelihood it is exact in these axes."""
    assert calibrated(bll.SVI(G.Diagonal(), num_epochs=40)).attrs["p_value"] > 0.05


def test_arviz_draws_the_pit_as_it_is(exact, plain):
    for tree in (exact, plain):
        drawn = az.plot_ecdf_pit(tree)
        assert drawn.viz.children or drawn.viz.data_vars
    plt.close("all")


def test_what_the_tree_holds(exact):
    sizes = {"weight": (100, 1, 3), "bias": (100, 1), "log_joint": (100,)}
    for group in ("prior_sbc", "ranks", "prior"):
        assert {name: value.shape for name, value in exact[group].data_vars.items()} == sizes
    assert exact["ranks"]["weight"].dims == ("simulation", "output", "feature")
    ranks, pit = exact["ranks"]["weight"].values, exact["prior_sbc"]["weight"].values
    assert ranks.min() >= 0 and ranks.max() <= 50
    assert ((pit >= ranks / 51) & (pit <= (ranks + 1) / 51)).all()
    assert exact.attrs["num_draws"] == 50 and exact.attrs["num_warned"] == 0
    assert "Gaussian" in exact.attrs["declaration"] and "Exact" in exact.attrs["inference"]
    smallest = min(float(value.min()) for value in exact["uniformity"].data_vars.values())
    assert exact.attrs["p_value"] == pytest.approx(min(1.0, 5 * smallest))


def test_the_truth_is_drawn_from_the_prior(exact):
    truth = exact["prior"]
    assert stats.kstest(truth["weight"].values.ravel(), stats.norm(0, 1).cdf).pvalue > 0.01
    assert stats.kstest(truth["bias"].values.ravel(), stats.norm(0, 1).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("declared", "num_targets"),
    [
        (bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0)), None),
        (bll.LastLayer(L.Poisson(), prior=P.Normal(0.3), bias_scale=0.5), None),
        (bll.LastLayer(L.Bernoulli(), prior=P.HierarchicalNormal(), standardize=False), 2),
        (bll.LastLayer(L.Gaussian(), prior=P.StudentT(4.0, 1.0)), 2),
    ],
    ids=["classes", "counts", "labels", "numbers"],
)
def test_every_kind_of_target_is_simulated(declared, num_targets):
    found = calibrated(bll.SVI(num_epochs=10), 10, declared, num_targets=num_targets, num_draws=20)
    outputs = {"Categorical": 3}.get(type(declared.likelihood).__name__, num_targets or 1)
    assert found["ranks"]["weight"].shape == (10, outputs, 3)
    assert all(np.isfinite(value).all() for value in found["prior"].data_vars.values())


def test_the_same_seed_gives_the_same_ranks_in_any_number_of_processes(exact):
    again = calibrated(bll.Exact(), 10, num_processes=2)
    for name, ranks in again["ranks"].data_vars.items():
        np.testing.assert_array_equal(ranks, exact["ranks"][name][:10])


def test_the_test_of_uniformity_tells_a_u_and_a_slope():
    random = np.random.default_rng(0)
    uniform = random.random(200)
    u_shape, slope = random.beta(0.5, 0.5, 200), random.beta(1.5, 1.0, 200)
    p_values = uniformity(np.stack([uniform, u_shape, slope], 1))
    assert p_values[0] > 0.05 and (p_values[1:] < 0.01).all()


def test_a_scale_that_is_learned_cannot_be_simulated():
    with pytest.raises(ValueError, match="HierarchicalNormal"):
        bll.sbc(bll.LastLayer(L.Gaussian(0.5)), bll.Exact(), features())


@pytest.mark.unchecked
def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="num_simulations"):
        bll.sbc(layer(), bll.Exact(), features(), 3)
    with pytest.raises(ValueError, match="num_draws"):
        bll.sbc(layer(), bll.Exact(), features(), num_draws=2.5)
    with pytest.raises(ValueError, match="features of shape"):
        bll.sbc(layer(), bll.Exact(), features()[:, 0])
    with pytest.raises(ValueError, match="finite features"):
        bll.sbc(layer(), bll.Exact(), features() * float("nan"))
    with pytest.raises(ValueError, match="expected None for the labels"):
        bll.sbc(bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0)), bll.SVI(), features(), num_targets=2)
    with pytest.raises(TypeError, match="inference such as"):
        bll.sbc(layer(), "exact", features())
