"""The tree of a fit: groups, names, selection, consistency of the draws, forms of data, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro.datatree import row_evaluation as passes
from bll_pyro.declaration import from_plain
from bll_pyro.posterior import DrawsPosterior, GaussianPosterior

NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 40, 5, 3
NAMES = ["ash", "birch", "cedar"]


def data(kind="class", seed=0):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(NUM_ROWS, NUM_FEATURES, generator=random) * 2 + 1
    f = inputs @ torch.randn(NUM_FEATURES, NUM_CLASSES, generator=random)
    if kind == "class":
        return inputs, (f + torch.randn(f.shape, generator=random)).argmax(-1)
    targets = 50 + 10 * f + 5 * torch.randn(f.shape, generator=random)
    return inputs, targets[:, 0] if kind == "number" else targets


@pytest.fixture(scope="module")
def fit():
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES))
    return bll.fit(layer, data(), inference=bll.SVI(num_epochs=100), seed=3)


@pytest.fixture(scope="module")
def regression():
    return bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), data("numbers"), inference=bll.Exact())


def test_every_group_with_its_dims(fit):
    tree = fit.to_datatree(*data(), num_draws=30, prior=20)
    sizes = {
        "posterior/weight": {"chain": 1, "draw": 30, "output": 3, "feature": 5},
        "posterior/bias": {"chain": 1, "draw": 30, "output": 3},
        "posterior_predictive/y": {"chain": 1, "draw": 30, "obs": 40},
        "log_likelihood/y": {"chain": 1, "draw": 30, "obs": 40},
        "log_prior/weight": {"chain": 1, "draw": 30},
        "log_prior/bias": {"chain": 1, "draw": 30},
        "sample_stats/log_p": {"chain": 1, "draw": 30},
        "sample_stats/log_q": {"chain": 1, "draw": 30},
        "prior/weight": {"chain": 1, "draw": 20, "output": 3, "feature": 5},
        "prior/bias": {"chain": 1, "draw": 20, "output": 3},
        "prior_predictive/y": {"chain": 1, "draw": 20, "obs": 40},
        "observed_data/y": {"obs": 40},
        "constant_data/feature_center": {"feature": 5},
        "constant_data/feature_scale": {"feature": 5},
    }
    found = {f"{g}/{v}": dict(tree[g][v].sizes) for g in tree.children for v in tree[g].data_vars}
    assert found == sizes


def test_several_targets_have_an_axis(regression):
    tree = regression.to_datatree(*data("numbers"), num_draws=30, output_names=NAMES)
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert tree[group]["y"].dims == ("chain", "draw", "obs", "output")
    assert tree["observed_data"]["y"].dims == ("obs", "output")
    assert tree["posterior"]["noise_scale"].dims == ("chain", "draw", "output")
    assert tree["constant_data"]["target_scale"].dims == ("output",)
    assert list(tree["log_likelihood"]["output"].values) == NAMES


def test_a_target_with_two_outputs_has_an_axis_of_its_own():
    rows = data("numbers")
    layer = bll.LastLayer(bll.likelihoods.HeteroscedasticGaussian())
    tree = bll.fit(layer, rows, inference=bll.SVI(num_epochs=5)).to_datatree(*rows, num_draws=10)
    assert tree["posterior"]["weight"].sizes["output"] == 6
    assert tree["observed_data"]["y"].sizes == {"obs": NUM_ROWS, "target": 3}


def test_hyper_parameters_have_the_axes_of_what_they_scale():
    rows = data("numbers")
    prior = bll.priors.HierarchicalNormal(per_feature=True)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), prior=prior)
    tree = bll.fit(layer, rows, inference=bll.SVI(num_epochs=5)).to_datatree(
        *rows, num_draws=10, features=[4, 1]
    )
    for group in ("posterior", "prior"):
        assert tree[group]["tau"].dims == ("chain", "draw", "feature")
        assert list(tree[group]["feature"].values) == [4, 1]


def test_attributes_say_how_it_was_made(fit):
    attrs = fit.to_datatree(*data(), num_draws=10, seed=11).attrs
    assert from_plain(yaml.safe_load(attrs["declaration"]), {}) == fit.layer
    assert from_plain(yaml.safe_load(attrs["inference"]), {}) == fit.inference
    assert (attrs["seed"], attrs["fit_seed"], attrs["num_training_rows"]) == (11, 3, NUM_ROWS)
    assert attrs["independent_draws"] == 1
    assert attrs["torch_version"] == str(torch.__version__)
    assert yaml.safe_load(attrs["learned"])["tau"] == pytest.approx(float(fit.posterior.learned["tau"]))


def test_tensors_of_the_declaration_are_constant_data():
    loc = torch.full((NUM_CLASSES, NUM_FEATURES), 0.25)
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), prior=bll.priors.Normal(1.0, loc=loc))
    tree = bll.fit(layer, data(), inference=bll.SVI(num_epochs=5)).to_datatree(*data(), num_draws=5)
    kept = tree["constant_data"]["layer.prior.loc"]
    assert kept.dims == ("output", "feature") and bool((kept == 0.25).all())


def test_draws_are_those_of_the_posterior_and_repeat(fit):
    tree = fit.to_datatree(*data(), num_draws=50, seed=5)
    for name, value in fit.posterior.sample(50, seed=5).items():
        assert np.array_equal(tree["posterior"][name].values, value.numpy())
    assert fit.to_datatree(*data(), num_draws=50, seed=5).equals(tree)
    assert not fit.to_datatree(*data(), num_draws=50, seed=6)["posterior"].equals(tree["posterior"])


def test_a_group_does_not_depend_on_which_others_are_made(fit):
    whole = fit.to_datatree(*data(), num_draws=20)
    part = fit.to_datatree(
        *data(), num_draws=20, posterior_predictive=False, log_prior=False, log_likelihood=False
    )
    assert set(part.children) == set(whole.children) - {"posterior_predictive", "log_prior", "log_likelihood"}
    assert set(part["sample_stats"].data_vars) == {"log_q"}
    for group in ("posterior", "prior", "prior_predictive", "observed_data"):
        assert part[group].equals(whole[group])
    assert "prior" not in fit.to_datatree(*data(), num_draws=20, prior=False).children


def test_the_callers_random_state_is_left_alone(fit):
    before = torch.get_rng_state()
    fit.to_datatree(*data(), num_draws=10)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("outputs", [["cedar", "ash"], [2, 0], [-1, "ash"]])
def test_selected_weights_are_a_part_of_all(fit, outputs):
    features = ["f1", "f4"]
    names = {"class_names": NAMES, "feature_names": [f"f{d}" for d in range(NUM_FEATURES)]}
    whole = fit.to_datatree(*data(), num_draws=20, **names)
    part = fit.to_datatree(*data(), num_draws=20, outputs=outputs, features=features, **names)
    for group in ("posterior", "prior"):
        expected = whole[group].to_dataset().sel(output=["cedar", "ash"], feature=features)
        assert part[group].to_dataset().equals(expected)
    for group in ("log_likelihood", "log_prior", "sample_stats", "posterior_predictive", "observed_data"):
        assert part[group].equals(whole[group])


def test_chunks_change_no_density(fit, monkeypatch):
    whole = fit.to_datatree(*data(), num_draws=37)
    monkeypatch.setattr(passes, "SCORED_AT_ONCE", 5 * NUM_CLASSES * NUM_FEATURES)
    monkeypatch.setattr(passes, "OUTPUTS_AT_ONCE", 100)
    parts = fit.to_datatree(*data(), num_draws=37)
    assert parts["posterior"].equals(whole["posterior"])
    for group in ("log_likelihood", "log_prior", "sample_stats"):
        xr.testing.assert_allclose(parts[group].to_dataset(), whole[group].to_dataset(), rtol=1e-12)


def test_a_big_layer_is_drawn_in_chunks(fit, monkeypatch):
    """No more weights at once than the limit, each chunk with draws of its own, and every draw scored rightly."""
    limit = 8 * NUM_CLASSES * NUM_FEATURES
    asked = []
    sample = GaussianPosterior.sample

    def counted(self, num_draws=1000, seed=0):
        asked.append(num_draws * NUM_CLASSES * NUM_FEATURES)
        return sample(self, num_draws, seed)

    monkeypatch.setattr(passes, "MADE_AT_ONCE", limit)
    monkeypatch.setattr(GaussianPosterior, "sample", counted)
    tree = fit.to_datatree(*data(), num_draws=30, features=[0])
    assert len(asked) == 4 and max(asked) <= limit
    assert len(np.unique(tree["posterior"]["weight"].values)) == 30 * NUM_CLASSES
    whole = fit.to_datatree(*data(), num_draws=30)
    draws = {k: torch.as_tensor(whole["posterior"][k].values) for k in ("weight", "bias")}
    assert np.allclose(tree["posterior"]["weight"], whole["posterior"]["weight"].sel(feature=[0]))
    log_q = fit.posterior.log_prob(draws)
    np.testing.assert_allclose(tree["sample_stats"]["log_q"].values, log_q, rtol=1e-4)


def test_new_classes_come_with_their_probabilities(fit):
    inputs, targets = data()
    num_draws = 4000
    tree = fit.to_datatree(
        inputs, targets, num_draws=num_draws, prior=False, class_names=NAMES, class_probs=True
    )
    drawn = tree["posterior_predictive"]["y"].values[0]
    share = np.stack([(drawn == k).mean(0) for k in range(NUM_CLASSES)], -1)
    probs = fit.predict(inputs).probs.numpy()
    assert np.abs(share - probs).max() < 5 * 0.5 / np.sqrt(num_draws)
    kept = tree["class_probs"]["y"]
    assert kept.dims == ("chain", "draw", "obs", "class") and list(kept["class"].values) == NAMES
    assert np.abs(kept.mean(("chain", "draw")).values - probs).max() < 5 * 0.5 / np.sqrt(num_draws)


def test_new_numbers_have_the_predictive_moments_in_the_users_units(regression):
    inputs, targets = data("numbers")
    num_draws = 4000
    drawn = regression.to_datatree(inputs, targets, num_draws=num_draws)["posterior_predictive"]["y"].values[
        0
    ]
    prediction = regression.predict(inputs)
    scale = prediction.scale.numpy()
    error = (drawn.mean(0) - prediction.mean.numpy()) / scale
    assert np.abs(error).max() < 5 / np.sqrt(num_draws)
    np.testing.assert_allclose(drawn.std(0), scale, rtol=5 / np.sqrt(num_draws))


def test_the_prior_predictive_has_the_variance_of_the_prior():
    """``Var(y) = t^2 (prior_scale^2 |h|^2 + bias_scale^2) + noise^2`` with the targets' scale t."""
    inputs, targets = data("number")
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(noise_scale=4.0), prior=bll.priors.Normal(0.5), bias_scale=2.0
    )
    fit = bll.fit(layer, (inputs, targets), inference=bll.Exact())
    tree = fit.to_datatree(inputs, targets, num_draws=2, prior=20_000)
    constants = tree["constant_data"]
    rows = (inputs.numpy() - constants["feature_center"].values) / constants["feature_scale"].values
    spread = float(constants["target_scale"])
    variance = spread**2 * (0.25 * (rows**2).sum(1) + 4.0) + 16.0
    found = tree["prior_predictive"]["y"].values[0]
    np.testing.assert_allclose(found.var(0), variance, rtol=5 * np.sqrt(2 / 20_000))
    error = (found.mean(0) - float(constants["target_center"])) / np.sqrt(variance)
    assert np.abs(error).max() < 5 / np.sqrt(20_000)


def test_every_form_of_data_gives_the_same_tree(fit):
    inputs, targets = data()
    options = {"num_draws": 10, "include_features": True}
    expected = fit.to_datatree(inputs, targets, **options)
    assert np.array_equal(expected["constant_data"]["features"].values, inputs.numpy())
    dataset = TensorDataset(inputs, targets)
    forms = [
        ((inputs.numpy(), targets.numpy()), None),
        (dataset, None),
        (DataLoader(dataset, batch_size=7), None),
        (bll.Features.from_tensors(inputs, targets), None),
        (bll.Features.from_tensors(inputs), targets.numpy()),
        (inputs.tolist(), targets.tolist()),
    ]
    for rows, given in forms:
        assert fit.to_datatree(rows, given, **options).equals(expected)


def test_a_backbone_runs_before(tmp_path):
    inputs, targets = data()
    backbone = nn.Linear(NUM_FEATURES, 4)
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES))
    fit = bll.fit(layer, (inputs, targets), backbone, bll.SVI(num_epochs=5), store=tmp_path)
    tree = fit.to_datatree(inputs, targets, num_draws=10)
    with torch.no_grad():
        head = fit.head.to_datatree(backbone(inputs), targets, num_draws=10)
    assert tree["posterior"].sizes["feature"] == 4
    xr.testing.assert_allclose(
        tree["log_likelihood"].to_dataset(), head["log_likelihood"].to_dataset(), rtol=1e-5
    )


def stored(fit, num_chains=2, num_stored=30):
    """The same fit with stored draws, as a sampler gives them."""
    posterior = fit.posterior
    draws = {k: v.reshape(num_chains, num_stored, *v.shape[2:]) for k, v in posterior.sample(60, 1).items()}
    common = {
        name: getattr(posterior, name)
        for name in ("layer", "frame", "target_shape", "num_outputs", "learned")
    }
    trace = replace(
        fit.trace,
        statistics={"sample_stats": {"diverging": torch.rand(num_chains, num_stored) > 0.9}, "elbo": 1.0},
    )
    return replace(fit, posterior=DrawsPosterior(**common, draws=draws), trace=trace)


def test_stored_draws_keep_their_chains_and_statistics(fit):
    sampled = stored(fit)
    tree = sampled.to_datatree(*data())
    assert tree["posterior"].sizes["chain"] == 2 and tree["posterior"].sizes["draw"] == 30
    assert tree.attrs["independent_draws"] == 0
    assert "density" in tree.attrs["log_q_missing"] and "log_q" not in tree["sample_stats"]
    diverging = sampled.trace.by_draw["diverging"].numpy()
    assert np.array_equal(tree["sample_stats"]["diverging"].values, diverging)
    assert "elbo" not in tree["sample_stats"]
    thin = sampled.to_datatree(*data(), thin=4)
    assert np.array_equal(thin["sample_stats"]["diverging"].values, diverging[:, ::4])
    assert np.array_equal(thin["posterior"]["bias"].values, sampled.posterior.draws["bias"][:, ::4].numpy())
    assert np.array_equal(thin["log_likelihood"]["y"].values, tree["log_likelihood"]["y"].values[:, ::4])
    few = sampled.to_datatree(*data(), num_draws=6)
    assert np.array_equal(few["sample_stats"]["diverging"].values, diverging[:, [0, 14, 29]])


def test_stored_draws_are_scored_like_others(fit):
    """The same numbers as one chain of independent draws, in another order."""
    tree, single = stored(fit).to_datatree(*data()), fit.to_datatree(*data(), num_draws=60, seed=1)
    for name in ("log_likelihood", "log_prior"):
        for site in tree[name].data_vars:
            values = single[name][site].values
            np.testing.assert_allclose(tree[name][site].values.reshape(values.shape), values, rtol=1e-12)


def test_a_point_has_no_density_and_says_so():
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), prior=bll.priors.Normal(1.0))
    fit = bll.fit(layer, data(), inference=bll.SVI(bll.guides.MAP(), num_epochs=20))
    tree = fit.to_datatree(*data(), num_draws=5)
    assert "no density" in tree.attrs["log_q_missing"]
    assert float(tree["posterior"]["weight"].std("draw").max()) < 1e-6


BAD = {
    "no targets": (
        lambda inputs, targets: (inputs, None),
        {},
        "expected inputs and targets, got inputs alone",
    ),
    "too few": (lambda inputs, targets: (inputs, targets[:-1]), {}, "expected as many targets as inputs"),
    "not finite": (lambda inputs, targets: (inputs, targets.float() / 0), {}, "infinite|NaN"),
    "another class": (lambda inputs, targets: (inputs, targets + 5), {}, "labels from 0 to 2"),
    "two columns": (lambda inputs, targets: (inputs, targets[:, None].repeat(1, 2)), {}, "shape"),
    "another width": (lambda inputs, targets: (inputs[:, :3], targets), {}, "features of shape"),
    "no draws": (None, {"num_draws": 0}, "whole number >= 1"),
    "thin": (None, {"thin": 0}, "whole number >= 1"),
    "names": (None, {"class_names": ["a", "b"]}, "expected 3 different names"),
    "same names": (None, {"class_names": ["a", "b", "a"]}, "2 different"),
    "position": (None, {"outputs": [3]}, "positions below 3"),
    "name": (None, {"features": ["x"]}, "positions below 5"),
    "nothing": (None, {"features": []}, "at least one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong(fit, case):
    change, options, message = BAD[case]
    rows = data() if change is None else change(*data())
    with pytest.raises(ValueError, match=message):
        fit.to_datatree(*rows, **options)


def test_classes_are_not_asked_of_numbers(regression):
    rows = data("numbers")
    with pytest.raises(ValueError, match="expected a fit of classes"):
        regression.to_datatree(*rows, class_names=NAMES)
    with pytest.raises(ValueError, match="expected a fit of classes"):
        regression.to_datatree(*rows, class_probs=True)
    with pytest.raises(ValueError, match="as many targets a row as in training"):
        regression.to_datatree(rows[0], rows[1][:, 0])
