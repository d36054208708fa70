"""``bll.loo``: an ELPD that ArviZ takes, in the user's units, for all rows and for some."""

import math
from dataclasses import replace
from functools import partial

import arviz as az
import numpy as np
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.inference.leave_one_out import leave_one_out
from bll_pyro.inference.leave_one_out import response as response_module
from bll_pyro.inference.rows import DesignRows
from bll_pyro.posterior import DrawsPosterior

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


NUM_ROWS = 60


def numbers(num_targets=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(NUM_ROWS, 4, generator=random, dtype=torch.float64) + 1
    targets = inputs @ torch.randn(4, num_targets, generator=random, dtype=torch.float64)
    return inputs, targets + 0.7 * torch.randn(NUM_ROWS, num_targets, generator=random, dtype=torch.float64)


def classes(num_rows=NUM_ROWS, num_features=4):
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_rows, num_features, generator=random)
    f = inputs @ torch.randn(num_features, 3, generator=random)
    return inputs, (f + torch.randn(f.shape, generator=random)).argmax(-1)


@pytest.fixture(scope="module")
def fit():
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return plain_fit(layer, classes(), inference=bll.SVI(num_epochs=300))


def test_it_adds_up(fit):
    result = bll.loo(fit, classes())
    assert result.elpd == pytest.approx(float(result.elpd_i.sum()))
    assert result.se == pytest.approx(math.sqrt(NUM_ROWS * float(result.elpd_i.var())))
    whole = float(fit.predict(classes()[0]).log_prob(classes()[1]).sum())
    assert result.p == pytest.approx(whole - result.elpd, abs=0.1) and result.p > 1
    assert (result.n_data_points, result.scale, result.kind) == (NUM_ROWS, "log", "loo")
    assert result.elpd_i.dims == ("obs",)
    assert np.array_equal(result.influence, result.pareto_k)
    assert float(result.pareto_k.min()) > 0 and float(result.pareto_k.max()) < 1


@pytest.mark.parametrize("num_targets", [1, 2])
def test_densities_are_in_the_users_units(num_targets):
    inputs, targets = numbers(num_targets)
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    here = bll.loo(plain_fit(layer, (inputs, targets), inference=bll.Exact()), (inputs, targets))
    scaled = (inputs, 1000 * targets)
    there = bll.loo(plain_fit(layer, scaled, inference=bll.Exact()), scaled)
    np.testing.assert_allclose(there.elpd_i, here.elpd_i - num_targets * math.log(1000), atol=1e-6)


def test_two_targets_are_the_sum_of_both():
    """Known noise: nothing ties the targets, and a row is left out of both."""
    inputs, targets = numbers(2)

    def elpd(y, noise):
        layer = bll.LastLayer(bll.likelihoods.Gaussian(noise), prior=bll.priors.Normal(0.5))
        return bll.loo(plain_fit(layer, (inputs, y), inference=bll.Exact()), (inputs, y)).elpd_i

    both = elpd(targets, (0.7, 0.6))
    np.testing.assert_allclose(both, elpd(targets[:, 0], 0.7) + elpd(targets[:, 1], 0.6), atol=1e-6)


def test_arviz_compares(fit):
    inputs, labels = classes()
    tight = bll.LastLayer(bll.likelihoods.Categorical(3), prior=bll.priors.Normal(0.02))
    worse = plain_fit(tight, (inputs, labels), inference=bll.SVI(num_epochs=100))
    results = {"learned": bll.loo(fit, (inputs, labels)), "tight": bll.loo(worse, (inputs, labels))}
    table = az.compare(results, round_to="none")
    assert list(table.index) == ["learned", "tight"]
    difference = results["learned"].elpd_i - results["tight"].elpd_i
    assert float(abs(table.loc["tight", "elpd_diff"])) == pytest.approx(float(difference.sum()))
    assert float(table.loc["tight", "dse"]) == pytest.approx(math.sqrt(NUM_ROWS * float(difference.var())))
    assert float(table["weight"].sum()) == pytest.approx(1)


def test_rows_with_much_influence_are_flagged_and_shown():
    """A feature that is 0 in all rows but one: that row alone says what the feature means."""
    inputs, targets = numbers()
    inputs = torch.cat([inputs, torch.zeros(NUM_ROWS, 1, dtype=torch.float64)], 1)
    inputs[7, -1] = 30.0
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.5), prior=bll.priors.Normal(3.0), standardize=False)
    result = bll.loo(
        plain_fit(layer, (inputs, targets[:, 0]), inference=bll.Exact()), (inputs, targets[:, 0])
    )
    assert result.warning and list(result.flagged) == [7]
    assert float(result.influence[7]) > 0.99
    shown = str(result)
    assert "Influence" in shown and "60 rows" in shown and "1.7%" in shown


def test_some_rows_estimate_all(fit):
    """The difference estimator: near the whole by its own standard error, for most draws of the rows."""
    whole = bll.loo(fit, classes())
    errors = []
    for seed in range(20):
        part = bll.loo(fit, classes(), num_rows=20, seed=seed)
        errors.append((part.elpd - whole.elpd) / part.subsampling_se)
        assert part.subsample_size == 20 and int(np.isfinite(part.elpd_i).sum()) == 20
        chosen = part.loo_subsample_observations
        np.testing.assert_allclose(part.elpd_i[chosen], whole.elpd_i[chosen], atol=1e-4)
        assert part.se == pytest.approx(whole.se, rel=0.3)
    assert np.mean(np.abs(errors) < 2) >= 0.8
    assert abs(np.mean(errors)) < 3 / math.sqrt(20)
    again = bll.loo(fit, classes(), num_rows=20, seed=19)
    assert np.array_equal(again.loo_subsample_observations, chosen) and again.elpd == part.elpd
    assert "20 of 60 rows" in str(part)


def test_the_estimator_is_that_of_arviz(fit):
    import xarray as xr

    part = bll.loo(fit, classes(), num_rows=15, seed=3)
    near = part.elpd_loo_approx
    chosen = part.loo_subsample_observations
    total, subsampling, se = xr.DataArray(part.elpd_i.values[chosen], dims="obs").azstats.diff_srs_estimator(
        lpd_approx_sample=near[chosen].drop_vars("obs"),
        lpd_approx_all=near.drop_vars("obs"),
        n_data_points=NUM_ROWS,
    )
    assert (part.elpd, part.subsampling_se, part.se) == pytest.approx(
        (float(total), float(subsampling), float(se))
    )


def test_arviz_compares_parts_of_the_same_rows(fit):
    inputs, labels = classes()
    other = plain_fit(
        bll.LastLayer(bll.likelihoods.Categorical(3), prior=bll.priors.Normal(0.02)), (inputs, labels)
    )
    parts = {
        name: bll.loo(f, (inputs, labels), num_rows=30, seed=1) for name, f in (("a", fit), ("b", other))
    }
    table = az.compare(parts)
    assert table.index[0] == "a" and "subsampling_dse" in table


def test_all_rows_asked_for_by_number_are_all_rows(fit):
    assert bll.loo(fit, classes(), num_rows=NUM_ROWS).elpd == bll.loo(fit, classes()).elpd


def test_every_form_of_data_and_a_backbone(tmp_path):
    inputs, labels = classes()
    backbone = nn.Linear(4, 6)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    fit = plain_fit(layer, (inputs, labels), backbone, bll.SVI(num_epochs=20), store=tmp_path)
    expected = bll.loo(fit, (inputs, labels)).elpd
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    assert bll.loo(fit, dataset).elpd == pytest.approx(expected)
    with torch.no_grad():
        assert bll.loo(fit.head, (backbone(inputs), labels)).elpd == pytest.approx(expected, rel=1e-5)


def sampled(fit, num_draws, markov_chain):
    """The same posterior as draws."""
    names = ("layer", "frame", "target_shape", "num_outputs", "learned")
    common = {name: getattr(fit.posterior, name) for name in names}
    draws = {
        k: v.reshape(2, num_draws // 2, *v.shape[2:]) for k, v in fit.posterior.sample(num_draws).items()
    }
    return replace(fit, posterior=DrawsPosterior(**common, draws=draws, markov_chain=markov_chain))


@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.parametrize("markov_chain", [True, False])
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_draws_are_left_to_psis(num_targets, markov_chain):
    """Rows are left out with all their targets, and the estimate agrees with output space."""
    data = numbers(num_targets)
    fit = plain_fit(bll.LastLayer(bll.likelihoods.Gaussian()), data, inference=bll.Exact())
    result = bll.loo(sampled(fit, 4000, markov_chain), data)
    expected = bll.loo(fit, data)
    assert result.elpd_i.shape == (NUM_ROWS,)
    assert result.elpd == pytest.approx(expected.elpd, abs=0.5)
    np.testing.assert_allclose(result.elpd_i, expected.elpd_i, atol=0.3)
    part = bll.loo(sampled(fit, 400, markov_chain), data, num_rows=20)
    assert part.subsample_size == 20


def test_a_layer_too_large_for_its_ties_says_so(fit, monkeypatch):
    monkeypatch.setattr(response_module, "MAX_JOINT_COLUMNS", 0)
    with pytest.warns(RuntimeWarning, match="too large for the correlations"):
        bll.loo(fit, classes())


def test_other_rows_are_refused(fit):
    inputs, labels = classes()
    with pytest.raises(ValueError, match="expected the 60 rows"):
        bll.loo(fit, (inputs[:50], labels[:50]))
    with pytest.raises(ValueError, match="inputs and targets"):
        bll.loo(fit, inputs)


@pytest.mark.parametrize("num_rows", [0, 1, 61, 2.5])
@pytest.mark.unchecked
def test_a_wrong_number_of_rows_is_refused(fit, num_rows):
    with pytest.raises(ValueError, match="whole number from 2 to 60"):
        bll.loo(fit, classes(), num_rows=num_rows)


@pytest.mark.slow
def test_agrees_with_new_rows_of_fashion(data_dir):
    """Fitted on 3,000 rows that the network has not seen; 4,000 others are the referee."""
    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)
    features, labels = torch.tensor(stored["H_test"]).float(), torch.tensor(stored["y_test"]).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    seen, new = order[:3000], order[3000:7000]
    fit = plain_fit(bll.LastLayer(bll.likelihoods.Categorical(10)), (features[seen], labels[seen]))
    result = bll.loo(fit, (features[seen], labels[seen]))
    new_log_prob = fit.predict(features[new]).log_prob(labels[new])
    left, held_out = result.elpd / 3000, float(new_log_prob.mean())
    error = math.hypot(result.se / 3000, float(new_log_prob.std()) / math.sqrt(4000))
    assert abs(left - held_out) < 2 * error
    assert not result.flagged.any()


def few_counts_or_labels(kind):
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(70, 3, generator=random, dtype=torch.float64)
    f = 0.5 + inputs @ torch.tensor([0.8, -0.5, 0.3], dtype=torch.float64)
    targets = {
        "logistic": lambda: torch.bernoulli(f.sigmoid(), generator=random),
        "softmax": lambda: torch.bernoulli(f.sigmoid(), generator=random).long() + (inputs[:, 0] > 1),
        "poisson": lambda: torch.poisson(f.exp(), generator=random),
    }[kind]()
    return inputs, targets


@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [
        ("logistic", bll.likelihoods.Bernoulli()),
        ("softmax", bll.likelihoods.Categorical(3)),
        ("poisson", bll.likelihoods.Poisson()),
    ],
    ids=["logistic", "softmax", "poisson"],
)
@pytest.mark.slow
def test_agrees_within_two_percent_with_refits_by_laplace(kind, likelihood):
    """Every row left out by a fit of its own; the standardisation is switched off, so that it is no part of the fit."""
    inputs, targets = few_counts_or_labels(kind)
    layer = bll.LastLayer(likelihood, prior=bll.priors.Normal(1.0), standardize=False)
    inference = bll.Laplace(curvature=bll.curvatures.Full())
    found = bll.loo(plain_fit(layer, (inputs, targets), inference=inference), (inputs, targets))
    refits = []
    for row in range(len(targets)):
        rest = torch.arange(len(targets)) != row
        fit = plain_fit(layer, (inputs[rest], targets[rest]), inference=inference)
        refits.append(float(fit.predict(inputs[row : row + 1]).log_prob(targets[row : row + 1])))
    assert found.elpd == pytest.approx(sum(refits), rel=0.02)
    # the densities with the row are further off than that: the test would see them
    assert found.elpd + found.p != pytest.approx(sum(refits), rel=0.02)
    # one row may own a fifth of what is known about its outputs, where a Gaussian site is an approximation
    np.testing.assert_allclose(found.elpd_i, refits, atol=0.15)


@pytest.mark.parametrize(
    "likelihood",
    [bll.likelihoods.HeteroscedasticGaussian(), bll.likelihoods.StudentT(df=3.0)],
    ids=["heteroscedastic", "student-t"],
)
@pytest.mark.slow
def test_noise_of_its_own_and_outliers_agree_with_refits(likelihood):
    """The sum is within a tenth of the effective number of parameters, which is what leaving rows in would add."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, 2, generator=random, dtype=torch.float64)
    f = 0.5 + inputs @ torch.tensor([0.8, -0.5], dtype=torch.float64)
    noise = torch.randn(60, generator=random, dtype=torch.float64)
    chi2 = torch.randn(60, 3, generator=random, dtype=torch.float64).square().sum(-1)
    heavy = isinstance(likelihood, bll.likelihoods.StudentT)
    targets = f + (0.5 * noise * (3 / chi2).sqrt() if heavy else (-1 + 0.7 * inputs[:, 1]).exp() * noise)
    layer = bll.LastLayer(likelihood, prior=bll.priors.Normal(1.0), standardize=False)
    inference = bll.Laplace(curvature=bll.curvatures.Full())
    found = bll.loo(plain_fit(layer, (inputs, targets), inference=inference), (inputs, targets))
    refits = []
    for row in range(60):
        rest = torch.arange(60) != row
        fit = plain_fit(layer, (inputs[rest], targets[rest]), inference=inference)
        refits.append(float(fit.predict(inputs[row : row + 1]).log_prob(targets[row : row + 1])))
    assert found.p > 3
    assert abs(found.elpd - sum(refits)) < 0.1 * found.p
    np.testing.assert_allclose(found.elpd_i, refits, atol=0.5)


def test_of_laplace_agrees_with_refits_of_few_separable_rows():
    """Fewer rows than weights of a class. Expectations under so wide a Gaussian say nothing of a fit made at the mode."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 30, generator=random, dtype=torch.float64)
    labels = (inputs @ torch.randn(30, 3, generator=random, dtype=torch.float64)).argmax(-1)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0), standardize=False)
    for curvature in (bll.curvatures.Full(), bll.curvatures.Kronecker()):
        inference = bll.Laplace(curvature=curvature)
        fit = plain_fit(layer, (inputs, labels), inference=inference)
        found, refits = bll.loo(fit, (inputs, labels)), []
        for row in range(len(labels)):
            rest = torch.arange(len(labels)) != row
            without = plain_fit(layer, (inputs[rest], labels[rest]), inference=inference)
            refits.append(float(without.predict(inputs[row : row + 1]).log_prob(labels[row : row + 1])))
        assert found.elpd == pytest.approx(sum(refits), rel=0.06)
        rows = DesignRows(inputs, labels, fit.posterior.frame, "cpu")
        expected = float(leave_one_out(fit.posterior, rows).elpd.sum())  # as for a variational fit
        assert expected < 1.3 * sum(refits)
