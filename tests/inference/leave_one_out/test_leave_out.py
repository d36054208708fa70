"""Leave-one-out in output space against refitting: exact models, grids, mean-field, real features."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bll_pyro as bll
from bll_pyro.gaussian import Delta, Dense, LatentGaussian
from bll_pyro.inference.leave_one_out import leave_out as module
from bll_pyro.inference.leave_one_out import response as response_module
from bll_pyro.inference.leave_one_out import row_by_row
from bll_pyro.inference.leave_one_out.leave_out import leave_one_out
from bll_pyro.inference.leave_one_out.response import SHARE_OF_PRECISION, expected_prior_precision, response
from bll_pyro.inference.rows import DesignRows
from bll_pyro.posterior import DrawsPosterior

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


def linear_data(num_rows=60, num_features=5, num_targets=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, num_features, generator=random, dtype=torch.float64) * 2 + 1
    weight = torch.randn(num_features, num_targets, generator=random, dtype=torch.float64)
    noise = torch.randn(num_rows, num_targets, generator=random, dtype=torch.float64)
    return inputs, inputs @ weight + 0.7 * noise + 2


def rows_of(fit, inputs, targets):
    """All rows in the frame of a fit."""
    checked = fit.layer.likelihood.check_targets(targets)
    return DesignRows(bll.Features.from_tensors(inputs), checked, fit.posterior.frame)


def left_out(fit, inputs, targets, **options):
    return leave_one_out(fit.posterior, rows_of(fit, inputs, targets), **options)


def refitted(fit, inputs, targets):
    """Exact refits without each row, in the frame of the whole fit: density of the row ``[N]`` in that frame."""
    frame, layer = replace(fit.posterior.frame, rotation=None), fit.posterior.layer
    checked = fit.layer.likelihood.check_targets(targets)
    result = []
    for row in range(len(inputs)):
        others = torch.arange(len(inputs)) != row
        rows = DesignRows(bll.Features.from_tensors(inputs[others]), checked[others], frame)
        posterior, _ = fit.inference.run(layer, rows, fit.posterior.target_shape, seed=0)
        outputs = posterior.outputs(inputs[row : row + 1])
        result.append(layer.likelihood.predictive_log_prob(outputs, frame.targets(checked[row : row + 1]), 1))
    return torch.cat(result)


@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_closed_form_of_the_conjugate_model(num_targets, bias):
    """NumPy's normal equations for every row left out; nothing of the library but the frame's constants."""
    inputs, targets = linear_data(num_targets=num_targets)
    noise = (0.7,) * num_targets
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise), prior=bll.priors.Normal(0.8), bias=bias)
    fit = plain_fit(layer, (inputs, targets), inference=bll.Exact())
    frame = fit.posterior.frame
    rows = ((inputs - frame.center) / frame.scale).numpy()
    y = ((targets - frame.target_center) / frame.target_scale).numpy()
    prior = np.full(rows.shape[1], 0.8**-2)
    if bias:
        rows, prior = np.column_stack([rows, np.ones(len(rows))]), np.append(prior, 0.01)
    expected, leverage = np.zeros(len(rows)), np.zeros(len(rows))
    for t in range(num_targets):
        scale = 0.7 / float(frame.target_scale[t])
        whole = np.diag(prior) + rows.T @ rows / scale**2
        for n in range(len(rows)):
            rest = np.arange(len(rows)) != n
            precision = np.diag(prior) + rows[rest].T @ rows[rest] / scale**2
            mean = np.linalg.solve(precision, rows[rest].T @ y[rest, t] / scale**2)
            variance = rows[n] @ np.linalg.solve(precision, rows[n]) + scale**2
            expected[n] += stats.norm(rows[n] @ mean, math.sqrt(variance)).logpdf(y[n, t])
            leverage[n] = max(leverage[n], rows[n] @ np.linalg.solve(whole, rows[n]) / scale**2)
    found = left_out(fit, inputs, targets)
    np.testing.assert_allclose(found.elpd, expected, atol=1e-6)
    np.testing.assert_allclose(found.influence, leverage, atol=1e-6)
    assert found.ties


def test_equals_the_closed_form_for_a_dense_covariance():
    """The same posterior written as one covariance over all weights."""
    inputs, targets = linear_data(num_targets=2)
    layer = bll.LastLayer(bll.likelihoods.Gaussian((0.7, 0.7)), prior=bll.priors.Normal(0.8))
    fit = plain_fit(layer, (inputs, targets), inference=bll.Exact())
    weights = fit.posterior.latents.weights
    from bll_pyro.gaussian.precision import precision

    covariance = torch.block_diag(*torch.linalg.inv(precision(weights)))
    tril = torch.linalg.cholesky(covariance)
    dense = Dense(weights.loc, tril.view(*weights.loc.shape, -1), tril.diagonal().log().sum())
    empty = weights.loc.new_zeros(0)
    other = replace(fit, posterior=replace(fit.posterior, latents=LatentGaussian(dense, empty, empty)))
    expected = left_out(fit, inputs, targets)
    np.testing.assert_allclose(left_out(other, inputs, targets).elpd, expected.elpd, atol=1e-8)


@pytest.mark.parametrize("noise", [bll.noises.Integrated(), bll.noises.Conjugate()], ids=str)
def test_equals_refitting_with_unknown_noise(noise):
    inputs, targets = linear_data(30, 3, 2)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), prior=bll.priors.Normal(0.8))
    fit = plain_fit(layer, (inputs, targets), inference=bll.Exact(noise))
    found = left_out(fit, inputs, targets)
    np.testing.assert_allclose(found.elpd, refitted(fit, inputs, targets), atol=1e-6)
    some = left_out(fit, inputs, targets, index=torch.tensor([3, 17]))
    assert torch.equal(some.elpd, found.elpd[[3, 17]]) and torch.equal(some.log_density, found.log_density)


@pytest.mark.slow
def test_unknown_noise_of_a_guide_is_averaged_as_it_is_without_the_row():
    """A row far off tells most about the noise: only with the noise reweighted does it look as far off as it is."""
    inputs, targets = linear_data(30, 3)
    targets[5] += 3
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), prior=bll.priors.Normal(0.8))
    exact = plain_fit(layer, (inputs, targets), inference=bll.Exact())
    expected = left_out(exact, inputs, targets).elpd
    fit = plain_fit(layer, (inputs, targets), inference=bll.SVI(bll.guides.FullRank()))
    found = left_out(fit, inputs, targets).elpd
    assert float(found[5]) == pytest.approx(float(expected[5]), rel=0.1)
    others = torch.arange(30) != 5
    np.testing.assert_allclose(found[others], expected[others], atol=0.1)


def on_grid(log_likelihood, features, targets, prior_scale, bias_scale):
    """Exact leave-one-out of two unknowns (weight, bias) on a grid."""
    weight, bias = np.meshgrid(np.linspace(-6, 6, 801), np.linspace(-6, 6, 801), indexing="ij")
    log_prior = stats.norm(0, prior_scale).logpdf(weight) + stats.norm(0, bias_scale).logpdf(bias)
    rows = np.stack([log_likelihood(weight * h + bias, y) for h, y in zip(features, targets)])
    joint = log_prior + rows.sum(0)
    result = []
    for row in rows:
        rest = np.exp(joint - row - (joint - row).max())
        result.append(np.log((rest * np.exp(row)).sum() / rest.sum()))
    return np.array(result)


GRIDS = {
    "logistic": (
        bll.likelihoods.Bernoulli(),
        lambda f, y: y * f - np.logaddexp(0, f),
        lambda f, random: torch.bernoulli(torch.sigmoid(f), generator=random),
    ),
    "poisson": (
        bll.likelihoods.Poisson(),
        lambda f, y: y * f - np.exp(f) - math.lgamma(y + 1),
        lambda f, random: torch.poisson(f.exp(), generator=random),
    ),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.thinned(3)
@pytest.mark.thinned(2)
def test_agrees_with_exact_leave_one_out_by_quadrature(name):
    likelihood, log_likelihood, draw = GRIDS[name]
    random = torch.Generator().manual_seed(1)
    features = torch.randn(60, 1, generator=random, dtype=torch.float64)
    targets = draw(1.3 * features[:, 0] + 0.4, random)
    layer = bll.LastLayer(likelihood, prior=bll.priors.Normal(1.5), bias_scale=2.0, standardize=False)
    fit = plain_fit(layer, (features, targets), inference=bll.SVI(bll.guides.FullRank()))
    expected = on_grid(log_likelihood, features[:, 0].numpy(), targets.numpy(), 1.5, 2.0)
    found = left_out(fit, features, targets)
    assert float(found.elpd.sum()) == pytest.approx(expected.sum(), rel=0.005)
    np.testing.assert_allclose(found.elpd, expected, atol=0.03)


def separable(num_rows=40, num_features=30, num_classes=4):
    """Few rows, many features, and classes far apart: where mean-field is at its worst."""
    random = torch.Generator().manual_seed(2)
    labels = torch.arange(num_rows) % num_classes
    centres = torch.randn(num_classes, num_features, generator=random)
    return centres[labels] + torch.randn(num_rows, num_features, generator=random), labels


def test_no_row_owns_more_than_there_is():
    """In the variances of mean-field a row can seem to own more than all; in the response of the means it cannot."""
    inputs, labels = separable(num_features=80)
    layer = bll.LastLayer(bll.likelihoods.Categorical(4), prior=bll.priors.Normal(2.0))
    fit = plain_fit(layer, (inputs, labels), inference=bll.SVI(num_epochs=500))
    found = left_out(fit, inputs, labels)
    assert float(found.influence.max()) < 0.95 and bool((found.influence > 0).all())
    outputs = fit.posterior.outputs(inputs)
    curvature = fit.layer.likelihood.expected_derivatives(outputs.draws(128), labels)[1]
    naive = torch.linalg.eigvals(outputs.covariance @ curvature).real.amax(-1)
    assert int((naive >= 1).sum()) > 5
    # the bound itself: 1 - influence is what is left of the precision, so R^-1 - L has no negative eigenvalue
    rows = rows_of(fit, inputs, labels)
    design, _ = rows[:]
    answer = response(fit.posterior, lambda: [(design, curvature)], len(labels))
    rest = torch.linalg.inv(answer.of(design)) - curvature
    assert bool((torch.linalg.eigvalsh(rest) > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "tolerance"), [(0.2, 0.04), (1.0, 0.15)])
def test_agrees_with_refitting_mean_field(scale, tolerance):
    """Whole refits, constants and axes included; with the wide prior a row decides half of what its class is."""
    inputs, labels = separable()
    layer = bll.LastLayer(bll.likelihoods.Categorical(4), prior=bll.priors.Normal(scale))
    inference = bll.SVI()  # at its optimum in some dozens of evaluations
    found = left_out(plain_fit(layer, (inputs, labels), inference=inference), inputs, labels)
    chosen = torch.arange(0, 40, 2)
    refits = []
    for row in chosen:
        rest = torch.arange(len(labels)) != row
        fit = plain_fit(layer, (inputs[rest], labels[rest]), inference=inference)
        refits.append(fit.predict(inputs[row : row + 1]).log_prob(labels[row : row + 1]))
    assert float(found.elpd[chosen].sum()) == pytest.approx(float(torch.cat(refits).sum()), rel=tolerance)


def fashion(data_dir, num_rows):
    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)
    features, labels = torch.tensor(stored["H_test"]).float(), torch.tensor(stored["y_test"]).long()
    return (features[:num_rows], labels[:num_rows]), (features[5000:], labels[5000:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
def test_ranks_prior_scales_as_new_rows_do(data_dir):
    (inputs, labels), (new_inputs, new_labels) = fashion(data_dir, 300)
    left, new = {}, {}
    for scale in (0.05, 0.4, 5.0):
        layer = bll.LastLayer(bll.likelihoods.Categorical(10), prior=bll.priors.Normal(scale))
        # short of the optimum at the scale of 5: there nearly all rows are fitted, and one step from the fit says too little
        fit = plain_fit(layer, (inputs, labels), inference=bll.SVI(learning_rate=0.02))
        elpd = left_out(fit, inputs, labels).elpd
        left[scale] = float(elpd.mean())
        new[scale] = float(fit.predict(new_inputs).log_prob(new_labels).mean())
        assert left[scale] == pytest.approx(new[scale], abs=3 * float(elpd.std()) / math.sqrt(300))
    assert sorted(left, key=left.__getitem__) == sorted(new, key=new.__getitem__)


def test_chosen_rows_equal_the_same_of_all_and_chunks_change_nothing(monkeypatch):
    inputs, labels = separable()
    fit = plain_fit(
        bll.LastLayer(bll.likelihoods.Categorical(4)), (inputs, labels), inference=bll.SVI(num_epochs=50)
    )
    whole = left_out(fit, inputs, labels)
    index = torch.tensor([0, 7, 39])
    some = left_out(fit, inputs, labels, index=index)
    assert torch.allclose(some.elpd, whole.elpd[index], atol=1e-5)
    assert len(some.log_density) == len(labels)
    monkeypatch.setattr(row_by_row, "CHUNK_NUMBERS", 4000)
    parts = left_out(fit, inputs, labels)
    assert torch.allclose(parts.elpd, whole.elpd, atol=1e-4)
    assert torch.allclose(parts.influence, whole.influence, atol=1e-4)


def test_the_log_density_is_that_of_the_predictive():
    inputs, labels = separable()
    fit = plain_fit(
        bll.LastLayer(bll.likelihoods.Categorical(4)), (inputs, labels), inference=bll.SVI(num_epochs=50)
    )
    expected = fit.predict(inputs).log_prob(labels)
    assert torch.allclose(left_out(fit, inputs, labels).log_density, expected, atol=1e-5)


@pytest.mark.parametrize(
    "limits", [{"MAX_JOINT_COLUMNS": 0}, {"MAX_JOINT_COLUMNS": 0, "MAX_BLOCK_WORK": 0}], ids=str
)
def test_layers_too_large_for_ties_are_left_out_cautiously(monkeypatch, limits):
    """Bounded, a little too low, and it says so."""
    inputs, labels = separable()
    layer = bll.LastLayer(bll.likelihoods.Categorical(4), prior=bll.priors.Normal(0.3))
    fit = plain_fit(layer, (inputs, labels), inference=bll.SVI())
    whole = left_out(fit, inputs, labels)
    for name, value in limits.items():
        monkeypatch.setattr(response_module, name, value)
    rough = left_out(fit, inputs, labels)
    assert whole.ties and not rough.ties
    assert 1.5 * float(whole.elpd.sum()) < float(rough.elpd.sum()) < float(whole.elpd.sum())
    assert float(rough.influence.max()) < 1


@pytest.mark.slow
def test_a_point_estimate_has_a_leave_one_out_too():
    """Approximate cross-validation of the mode: refits of the mode agree."""
    inputs, labels = separable(30, 8, 3)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), prior=bll.priors.Normal(0.5))
    inference = bll.SVI(bll.guides.MAP(), num_epochs=500)
    fit = plain_fit(layer, (inputs, labels), inference=inference)
    assert isinstance(fit.posterior.latents.weights, Delta)
    found = left_out(fit, inputs, labels).elpd
    refits = []
    for row in range(0, 30, 5):
        rest = torch.arange(30) != row
        other = plain_fit(layer, (inputs[rest], labels[rest]), inference=inference)
        refits.append(float(other.predict(inputs[row : row + 1]).log_prob(labels[row : row + 1])))
    np.testing.assert_allclose(found[::5], refits, atol=0.1)


@pytest.mark.slow
def test_rows_that_are_not_log_concave_are_taken():
    """Student-t rows far off have negative curvature, and so have both outputs of a heteroscedastic row together."""
    inputs, targets = linear_data(40, 4)
    targets[::9] += 8
    for likelihood in (bll.likelihoods.StudentT(df=3.0), bll.likelihoods.HeteroscedasticGaussian()):
        fit = plain_fit(bll.LastLayer(likelihood), (inputs, targets), inference=bll.SVI(num_epochs=300))
        found = left_out(fit, inputs, targets)
        assert bool(torch.isfinite(found.elpd).all())
        assert float(found.elpd.sum()) < float(found.log_density.sum())


def test_more_rows_unsaying_than_saying_are_counted_without_what_they_unsay():
    """Where the summed curvature is not positive definite, its negative parts are dropped row by row."""
    inputs, targets = linear_data(20, 3)
    fit = plain_fit(
        bll.LastLayer(bll.likelihoods.Gaussian(0.5)), (inputs, targets[:, 0]), inference=bll.Exact()
    )
    design, _ = rows_of(fit, inputs, targets)[:]
    curvature = torch.full((20, 1, 1), -3.0, dtype=torch.float64)
    curvature[:5] = 2.0
    found = response(fit.posterior, lambda: [(design, curvature)], 20).of(design)
    kept = response(fit.posterior, lambda: [(design, curvature.clamp_min(0))], 20).of(design)
    assert torch.allclose(found, kept)


def test_draws_are_refused():
    inputs, targets = linear_data()
    fit = plain_fit(
        bll.LastLayer(bll.likelihoods.Gaussian(0.7)), (inputs, targets[:, 0]), inference=bll.Exact()
    )
    posterior = fit.posterior
    common = {
        name: getattr(posterior, name)
        for name in ("layer", "frame", "target_shape", "num_outputs", "learned")
    }
    draws = DrawsPosterior(**common, draws=posterior.sample(10))
    with pytest.raises(TypeError, match=r"bll\.loo"):
        leave_one_out(draws, rows_of(fit, inputs, targets))


PRIORS = {
    "normal": (bll.priors.Normal(0.5), stats.norm(0, 0.5)),
    "laplace": (bll.priors.Laplace(0.5), stats.laplace(0, 0.5 / math.sqrt(2))),
    "any": (bll.priors.Distribution(dist.Logistic(0.0, 0.4)), stats.logistic(0, 0.4)),
    "student-t": (bll.priors.StudentT(4.0, 0.5), stats.t(4, 0, 0.5 * math.sqrt(0.5))),
}


@pytest.mark.parametrize("name", PRIORS)
def test_precision_of_the_prior_is_its_mean_curvature(name):
    """``-E[l''(w)]`` over ``w ~ N(m, s^2)``, by integrating ``l'(w) (m - w) / s^2`` (Stein) on a fine grid."""
    prior, reference = PRIORS[name]
    inputs, targets = linear_data(30, 4)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.7), prior=prior, bias_scale=3.0)
    fit = plain_fit(layer, (inputs, targets[:, 0]), inference=bll.SVI(num_epochs=30))
    found = expected_prior_precision(fit.posterior)
    weights = fit.posterior.latents.weights
    assert float(found[0, -1]) == pytest.approx(1 / 9)
    z = np.linspace(-8, 8, 40_001)
    for d in range(4):
        loc, scale = float(weights.loc[0, d]), float(weights.scale[0, d])
        slope = np.gradient(reference.logpdf(loc + scale * z), scale * z)
        expected = -(slope * z * stats.norm.pdf(z)).sum() * (z[1] - z[0]) / scale
        expected = max(expected, SHARE_OF_PRECISION / scale**2)  # negative in heavy tails
        assert float(found[0, d]) == pytest.approx(expected, rel=0.1, abs=0.05)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
def test_precision_of_a_prior_with_hyper_parameters_is_averaged_over_them():
    inputs, targets = linear_data(30, 4)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.7), prior=bll.priors.HierarchicalNormal())
    fit = plain_fit(layer, (inputs, targets[:, 0]), inference=bll.SVI(num_epochs=400))
    tau = fit.posterior.sample(20_000)["tau"]
    expected = float(tau.square().reciprocal().mean())
    assert float(expected_prior_precision(fit.posterior)[0, 0]) == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_a_sample_of_many_rows_agrees_with_all_of_them(data_dir, monkeypatch):
    (inputs, labels), _ = fashion(data_dir, 4000)
    fit = plain_fit(bll.LastLayer(bll.likelihoods.Categorical(10)), (inputs, labels))
    whole = left_out(fit, inputs, labels)
    monkeypatch.setattr(module, "MAX_TIED_ROWS", 3999)
    monkeypatch.setattr(module, "NUM_SAMPLED_ROWS", 1500)
    sampled = left_out(fit, inputs, labels)
    error = float(whole.elpd.std()) * math.sqrt(len(labels))
    assert float(sampled.elpd.sum()) == pytest.approx(float(whole.elpd.sum()), abs=0.15 * error)
    lost, expected = sampled.log_density - sampled.elpd, whole.log_density - whole.elpd
    assert float(lost.sum()) == pytest.approx(float(expected.sum()), rel=0.1)
    assert float((lost - expected).square().mean().sqrt()) < 0.5 * float(expected.square().mean().sqrt())
    # those with the most influence are left out one by one
    top = whole.influence.topk(20).indices
    assert torch.allclose(sampled.influence[top], whole.influence[top], atol=0.15)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_without_ties_or_with_weights_are_never_sampled(monkeypatch, weighted):
    if weighted:
        inputs, targets = separable()
        weight = torch.linspace(0.5, 2.0, len(targets))
        data = bll.Data((inputs, targets), sample_weight=weight)
        fit = plain_fit(bll.LastLayer(bll.likelihoods.Categorical(4)), data, inference=bll.SVI(num_epochs=50))
    else:
        inputs, targets = linear_data(num_targets=2)
        data = (inputs, targets)
        fit = plain_fit(bll.LastLayer(bll.likelihoods.Gaussian((0.7, 0.7))), data, inference=bll.Exact())
    expected = bll.loo(fit, data)
    monkeypatch.setattr(module, "MAX_TIED_ROWS", 10)
    monkeypatch.setattr(module, "NUM_SAMPLED_ROWS", 20)
    np.testing.assert_array_equal(bll.loo(fit, data).elpd_i, expected.elpd_i)


def test_some_of_many_rows_take_no_more_than_all_of_them(monkeypatch):
    """Both take the curvature from one sample, and the rows that are left out in both have nearly the same density."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(800, 5, generator=random)
    targets = (inputs @ torch.randn(5, 3, generator=random) + torch.randn(800, 3, generator=random)).argmax(
        -1
    )
    fit = plain_fit(bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0)), (inputs, targets))
    monkeypatch.setattr(module, "MAX_TIED_ROWS", 700)
    monkeypatch.setattr(module, "MAX_CURVATURE_ROWS", 700)
    monkeypatch.setattr(module, "NUM_SAMPLED_ROWS", 300)
    seen, add = [], bll.curvatures.Full.add

    def counted(self, sums, design, information):
        seen.append(len(design))
        return add(self, sums, design, information)

    monkeypatch.setattr(bll.curvatures.Full, "add", counted)
    whole = left_out(fit, inputs, targets)
    of_all = sum(seen)
    index = torch.arange(0, 800, 4)
    rows = DesignRows(inputs, targets, fit.posterior.frame, "cpu")
    some = leave_one_out(fit.posterior, rows, index)
    assert sum(seen) == 2 * of_all and of_all < 400
    monkeypatch.setattr(module, "MAX_TIED_ROWS", 10_000)
    exact = left_out(fit, inputs, targets)
    torch.testing.assert_close(some.elpd, exact.elpd[index], atol=0.02, rtol=0.02)
    torch.testing.assert_close(some.log_density, whole.log_density)
