"""Scores against SciPy and explicit sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

import bll_pyro as bll
from bll_pyro import ood
from bll_pyro.ood.base import View
from bll_pyro.ood.coordinates import row_coordinates
from bll_pyro.ood.fisher import surprise
from bll_pyro.ood.groups import groups as groups_of

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(300, 5, generator=GENERATOR) @ torch.randn(5, 5, generator=GENERATOR)
LABELS = (FEATURES[:, 0] > 0).long() + (FEATURES[:, 1] > 0.5).long()
NEW = torch.randn(40, 5, generator=GENERATOR)


@pytest.fixture(scope="module")
def fit():
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return bll.fit(layer, (FEATURES, LABELS), inference=bll.SVI(num_epochs=30))


@pytest.fixture(scope="module")
def view(fit):
    return View(NEW, fit.posterior)


def fitted(score, fit):
    def score_rows(other):
        return other.of(View(FEATURES, fit.posterior))

    return score.fitted(fit.posterior, FEATURES, LABELS, score_rows)


def draws_of(fit, rows, num_draws=40_000):
    draws = fit.posterior.sample(num_draws, seed=3)
    return fit.posterior.draw_outputs(draws, rows)


def test_leverage_is_the_geometric_mean_of_the_variance_of_drawn_outputs(fit, view):
    variance = draws_of(fit, NEW).double().var(0)
    expected = variance.log().mean(-1)
    # the log of a variance of S draws has a standard error of sqrt(2 / S), and outputs are averaged
    tolerance = 5 * (2 / 40_000) ** 0.5
    np.testing.assert_allclose(ood.Leverage(normalize=False).of(view), expected, atol=tolerance)
    # as a function of the direction: of features of unit length with the variance of drawn W u + (b - W c / s) / |h / s|
    length = np.linalg.norm(NEW.double().numpy() / fit.posterior.frame.scale.double().numpy(), axis=1)
    np.testing.assert_allclose(ood.Leverage().of(view), expected.numpy() - np.log(length**2), atol=tolerance)


def test_leverage_of_one_gaussian_output_is_the_classical_one():
    targets = FEATURES @ torch.arange(5.0) + torch.randn(300, generator=GENERATOR)
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(noise_scale=1.0), bll.priors.Normal(scale=2.0), bias=False, standardize=False
    )
    fit = bll.fit(layer, (FEATURES, targets), inference=bll.Exact())
    h = FEATURES.double().numpy()
    precision = h.T @ h + np.eye(5) / 2.0**2
    new = NEW.double().numpy()
    expected = np.log(np.einsum("nd,nd->n", new @ np.linalg.inv(precision), new))
    np.testing.assert_allclose(
        ood.Leverage(normalize=False).of(View(NEW, fit.posterior)), expected, rtol=1e-4
    )
    np.testing.assert_allclose(ood.Epistemic().of(View(NEW, fit.posterior)), np.exp(expected), rtol=1e-4)


def test_prediction_scores_against_drawn_outputs(fit, view):
    probs = softmax(draws_of(fit, NEW).double().numpy(), -1)
    mean = probs.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    expected = -(probs * np.log(probs)).sum(-1).mean(0)
    np.testing.assert_allclose(ood.PredictiveEntropy().of(view), entropy, atol=0.02)
    np.testing.assert_allclose(ood.Epistemic().of(view), entropy - expected, atol=0.005)
    np.testing.assert_allclose(ood.MaxProbability().of(view), 1 - mean.max(-1), atol=0.01)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_is_the_free_energy_of_the_mean_outputs(fit, view, temperature):
    mean = fit.posterior.outputs(NEW).mean.double().numpy()
    expected = -temperature * logsumexp(mean / temperature, axis=-1)
    np.testing.assert_allclose(ood.Energy(temperature).of(view), expected, rtol=1e-5, atol=1e-6)


def standardized(fit, rows):
    return fit.posterior.frame.standardized(rows).double().numpy()


def unit_length(fit, rows):
    scaled = rows.double().numpy() / fit.posterior.frame.scale.double().numpy()
    return scaled / np.sqrt((scaled**2).sum(1, keepdims=True))


COORDINATES = {True: unit_length, False: standardized}


def distances(fit, ridge, normalize):
    """Squared distances of the new rows to each class and to all rows, by SciPy."""
    labels = LABELS.numpy()
    train, new = (COORDINATES[normalize](fit, rows) for rows in (FEATURES, NEW))
    means = np.stack([train[labels == c].mean(0) for c in range(3)])

    def squared(centred, centres):
        covariance = centred.T @ centred / len(centred)
        covariance += ridge * np.trace(covariance) / 5 * np.eye(5)
        return cdist(new, centres, "mahalanobis", VI=np.linalg.inv(covariance)) ** 2

    total = train.mean(0, keepdims=True)
    return squared(train - means[labels], means).min(-1), squared(train - total, total)[:, 0]


@pytest.mark.parametrize("normalize", [True, False])
def test_mahalanobis_against_scipy(fit, view, normalize):
    nearest, background = distances(fit, 1e-3, normalize)
    mahalanobis = fitted(ood.Mahalanobis(normalize=normalize), fit).of(view)
    np.testing.assert_allclose(mahalanobis, nearest, rtol=1e-4, atol=1e-4)
    relative = fitted(ood.RelativeMahalanobis(normalize=normalize), fit).of(view)
    np.testing.assert_allclose(relative, nearest - background, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 10])
def test_nearest_neighbours_against_scipy(fit, view, k, normalize, monkeypatch):
    train, new = (COORDINATES[normalize](fit, rows) for rows in (FEATURES, NEW))
    ordered = np.sort(cdist(new, train), 1)
    score = fitted(ood.KNearestNeighbours(k, normalize=normalize), fit)
    np.testing.assert_allclose(score.of(view), ordered[:, k - 1], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("bll_pyro.ood.neighbours.BLOCK", 7)  # the same from many blocks
    torch.testing.assert_close(score.of(view), fitted(score, fit).of(view))
    np.testing.assert_allclose(score.of(view), ordered[:, k - 1], rtol=1e-3, atol=1e-3)


def test_nearest_neighbours_keep_some_rows(fit, view):
    score = fitted(ood.KNearestNeighbours(most_rows=50, seed=3), fit)
    assert score.rows.shape == (50, 5)
    assert "rows=tensor[50, 5]" in repr(score) and "tensor" not in repr(ood.KNearestNeighbours())
    assert torch.equal(score.rows, fitted(ood.KNearestNeighbours(most_rows=50, seed=3), fit).rows)
    assert not torch.equal(score.rows, fitted(ood.KNearestNeighbours(most_rows=50, seed=4), fit).rows)
    own = unit_length(fit, FEATURES)
    assert cdist(score.rows.double().numpy(), own).min(1).max() < 1e-6  # each is one of the rows
    # fewer rows are not nearer
    assert bool((score.of(view) >= fitted(ood.KNearestNeighbours(), fit).of(view) - 1e-5).all())
    with pytest.raises(ValueError, match=r"expected at least k = 400 training rows, got 300"):
        fitted(ood.KNearestNeighbours(400), fit)


@pytest.mark.parametrize("normalize", [True, False])
def test_nearest_group_against_scipy(fit, view, normalize):
    train, new = (COORDINATES[normalize](fit, rows) for rows in (FEATURES, NEW))
    parts = groups_of(torch.from_numpy(train), 10)
    assert sorted(torch.cat(parts).tolist()) == list(range(300))
    assert {len(part) for part in parts} <= set(range(10, 20))
    means = np.stack([train[part].mean(0) for part in parts])
    score = fitted(ood.NearestGroup(normalize=normalize), fit)
    np.testing.assert_allclose(score.of(view), cdist(new, means).min(1), rtol=1e-3, atol=1e-3)
    own = cdist(score.means.double().numpy(), train).min(1)
    assert own.min() > 1e-3  # no mean is a row
    # groups are of rows that lie together
    spread = np.mean([train[part].var(0).sum() for part in parts])
    assert spread < 0.5 * train.var(0).sum()


def test_nearest_group_uses_some_rows(fit):
    score = ood.NearestGroup(5, most_rows=50, seed=3)
    found = fitted(score, fit).means
    assert 5 <= len(found) <= 10
    assert torch.equal(found, fitted(score, fit).means)
    assert not torch.equal(found, fitted(replace(score, seed=4), fit).means)
    with pytest.raises(ValueError, match=r"expected at least size = 400 training rows, got 300"):
        fitted(ood.NearestGroup(400), fit)


@pytest.mark.parametrize("num_principal", [None, 3])
def test_vim_against_numpy(fit, view, num_principal):
    """By the paper, from the raw weights: W h / s + b with h in units of the frame's scale s."""
    scale = fit.posterior.frame.scale.double().numpy()
    outputs = fit.posterior.outputs(FEATURES).mean.double().numpy()
    design = np.column_stack([FEATURES.double().numpy() / scale, np.ones(300)])
    *weight, bias = np.linalg.lstsq(design, outputs, rcond=None)[0]
    weight = np.stack(weight).T
    train, new = (rows.double().numpy() / scale for rows in (FEATURES, NEW))
    origin = -np.linalg.pinv(weight, rcond=1e-3) @ bias
    values, vectors = np.linalg.eigh((train - origin).T @ (train - origin))
    left_out = vectors[:, np.argsort(values)[: 5 - (num_principal or 2)]]
    residual = np.linalg.norm((new - origin) @ left_out, axis=1)
    alpha = (train @ weight.T + bias).max(1).mean() / np.linalg.norm(
        (train - origin) @ left_out, axis=1
    ).mean()
    logits = new @ weight.T + bias
    virtual = np.exp(alpha * residual) / (np.exp(alpha * residual) + np.exp(logits).sum(1))
    found = fitted(ood.ViM(num_principal), fit).of(view)
    np.testing.assert_allclose(found, np.log(virtual / (1 - virtual)), rtol=1e-3, atol=1e-3)


def test_fisher_adds_logs_of_p_values_with_an_exponential_tail():
    known = torch.randn(200, generator=GENERATOR).double().exp().sort().values
    scores = torch.cat([known[::7], torch.tensor([-1.0, 20.0, 50.0, 1e6], dtype=torch.float64)])
    start, excess = known[179], known[180:] - known[179]  # nine tenths of 200 rows lie at or below
    expected = []
    for score in scores.tolist():
        if score <= start:
            expected.append(-np.log((1 + sum(k >= score for k in known.tolist())) / 201))
        else:
            expected.append(-np.log(21 / 201) + (score - float(start)) * np.log(2) / float(excess.median()))
    found = surprise(known, scores)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert bool((found[-3:].diff() > 0).all())  # strange rows never tie


def test_fisher_of_parts(fit, view):
    parts = (ood.Energy(), ood.Mahalanobis())
    score = fitted(ood.Fisher(parts), fit)
    reference = View(FEATURES[:100], fit.posterior)
    score = score.referenced(lambda part: part.of(reference))
    expected = 0
    for part in score.scores:
        expected = expected + surprise(part.of(reference).double().sort().values, part.of(view).double())
    torch.testing.assert_close(score.of(view), expected)


def test_harmonic_mean_of_groups(fit, view):
    """Against the p-values themselves: their products to the power of 1 / sqrt(M), and the harmonic mean of these."""
    groups = (
        ood.Fisher((ood.Energy(), ood.PredictiveEntropy(), ood.Epistemic())),
        ood.Fisher((ood.Leverage(), ood.FeatureNorm())),
    )
    reference = View(FEATURES[:100], fit.posterior)
    score = ood.HarmonicMean(groups).referenced(lambda part: part.of(reference))
    assert score.needs_reference_rows is score.needs_training_rows is False
    p_values = []
    for group in groups:
        parts = [
            torch.exp(-surprise(part.of(reference).double().sort().values, part.of(view).double()))
            for part in group.scores
        ]
        p_values.append(torch.stack(parts).prod(0) ** len(parts) ** -0.5)
    harmonic = 2 / (1 / p_values[0] + 1 / p_values[1])
    torch.testing.assert_close(score.of(view), np.log(2) - harmonic.log())
    weighted = replace(score, weights=(1, 8))
    torch.testing.assert_close(weighted.of(view), (1 / p_values[0] + 8 / p_values[1]).log())
    assert ood.HarmonicMean((ood.Fisher((ood.Energy(), ood.Mahalanobis())), groups[1])).needs_training_rows


def test_a_score_that_says_nothing_moves_no_rank(fit, view):
    """Rounding of a constant is not taken for a tail."""
    constant = 1 + 1e-8 * torch.randn(100, generator=GENERATOR).double()
    assert float((surprise(constant.sort().values, constant + 1e-8)).max()) < np.log(101) + 0.1


@pytest.mark.parametrize(
    "score",
    [
        ood.Mahalanobis(),
        ood.RelativeMahalanobis(),
        ood.KNearestNeighbours(),
        ood.NearestGroup(),
        ood.Length(),
        ood.Leverage(),
        ood.ViM(),
    ],
)
def test_rows_of_zeros_have_a_score(fit, score):
    ready = fitted(score, fit)
    zeros = ready.of(View(torch.zeros(2, 5), fit.posterior))
    assert bool(zeros.isfinite().all()) and float(zeros[0]) == float(zeros[1])
    if isinstance(score, ood.Leverage):
        assert float(zeros[0]) > float(ready.of(View(FEATURES, fit.posterior)).max())


@pytest.mark.parametrize(
    "score",
    [
        ood.Mahalanobis(),
        ood.KNearestNeighbours(),
        ood.NearestGroup(),
        ood.Length(),
        ood.Leverage(),
        ood.ViM(),
    ],
)
def test_units_of_a_table_do_not_matter(fit, view, score):
    units = torch.tensor([1e3, 1.0, 1e-3, 7.0, 0.1])
    frame = fit.posterior.frame
    moved = replace(
        fit.posterior, frame=replace(frame, center=frame.center * units, scale=frame.scale * units)
    )
    same = score.fitted(moved, FEATURES * units, LABELS, lambda other: NEW[:, 0]).of(View(NEW * units, moved))
    torch.testing.assert_close(same, fitted(score, fit).of(view), rtol=1e-3, atol=1e-3)


def test_unit_length_is_that_of_raw_features_where_they_share_a_scale():
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), standardize="common")
    fit = bll.fit(layer, (FEATURES, LABELS), inference=bll.SVI(num_epochs=1))
    expected = torch.nn.functional.normalize(NEW)
    torch.testing.assert_close(row_coordinates(fit.posterior, NEW, True), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_mahalanobis_bears_features_that_are_constant_in_training(fit, normalize):
    rows = torch.cat([FEATURES[:, :4], torch.ones(300, 1)], 1)
    constant = bll.fit(fit.layer, (rows, LABELS), inference=bll.SVI(num_epochs=1))
    score = ood.Mahalanobis(normalize=normalize).fitted(
        constant.posterior, rows, LABELS, lambda other: torch.zeros(300)
    )
    moved = rows.clone()
    moved[:, 4] += 3
    known, unknown = (score.of(View(part, constant.posterior)) for part in (rows, moved))
    assert bool(torch.isfinite(known).all()) and bool(torch.isfinite(unknown).all())
    # the size of a row of unit length is shared by all features, so there the constant one varies as well
    assert bll.metrics.auroc(known, unknown) > (0.8 if normalize else 1 - 1e-9)


def test_combination_adds_scores_on_the_scale_of_the_training_rows(fit, view):
    parts = (ood.Leverage(), ood.Mahalanobis())
    score = fitted(ood.Combination(parts, weights=(1.0, 0.5)), fit)
    train = View(FEATURES, fit.posterior)
    expected = 0
    for part, weight in zip(parts, (1.0, 0.5)):
        one = fitted(part, fit)
        values = one.of(train)
        expected = expected + weight * (one.of(view) - values.mean()) / values.std()
    torch.testing.assert_close(score.of(view), expected)


def test_several_targets_count_on_their_standardised_scale():
    targets = torch.stack([FEATURES[:, 0], 1000 * FEATURES[:, 1]], -1)
    targets = targets + torch.randn(300, 2, generator=GENERATOR) * torch.tensor([1.0, 1000.0])
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (FEATURES, targets), inference=bll.Exact())
    scale = targets.std(0, correction=0)
    expected = (fit.predict(NEW).epistemic / scale**2).sum(-1)
    torch.testing.assert_close(ood.Epistemic().of(View(NEW, fit.posterior)), expected, rtol=1e-3, atol=1e-8)


def test_feature_norm_is_minus_the_sum_of_sizes(view):
    np.testing.assert_allclose(ood.FeatureNorm().of(view), -np.abs(NEW.numpy()).sum(1), rtol=1e-6)


def test_length_looks_both_ways(fit, view):
    """Against NumPy's quantiles of the lengths; the middle has none, and the 5% quantiles on both sides have a score of 1."""
    scale = fit.posterior.frame.scale.numpy()
    train, new = (np.linalg.norm(rows.numpy() / scale, axis=1) for rows in (FEATURES, NEW))
    low, middle, high = np.quantile(train, [0.05, 0.5, 0.95], method="nearest")
    expected = np.where(new < middle, (middle - new) / (middle - low), (new - middle) / (high - middle))
    score = fitted(ood.Length(), fit)
    np.testing.assert_allclose(score.of(view), expected, rtol=1e-4, atol=1e-6)
    rows = FEATURES[:1] / train[0] * torch.tensor([[low], [middle], [high]])
    np.testing.assert_allclose(score.of(View(rows, fit.posterior)), [1, 0, 1], atol=1e-4)


def test_length_of_rows_that_all_have_the_same(fit):
    """Rounding is not taken for a spread; another length is far away."""
    sphere = FEATURES / (FEATURES / fit.posterior.frame.scale).norm(dim=1, keepdim=True)
    score = ood.Length().fitted(fit.posterior, sphere, LABELS, lambda other: NEW[:, 0])
    same, shorter = (score.of(View(rows, fit.posterior)) for rows in (sphere, 0.9 * sphere))
    assert float(same.max()) < 10 and float(shorter.min()) > 1e4


@pytest.mark.parametrize("score", [ood.PredictiveEntropy(), ood.MaxProbability(), ood.Energy()])
def test_scores_of_classes_refuse_real_values(score):
    targets = FEATURES[:, 0] + torch.randn(300, generator=GENERATOR)
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (FEATURES, targets), inference=bll.Exact())
    with pytest.raises(TypeError, match=r"expected .* got .*; use"):
        bll.ood.Detector(score).calibrate(fit, FEATURES)
    with pytest.raises(TypeError, match="use Mahalanobis"):
        bll.ood.Detector(ood.RelativeMahalanobis()).calibrate(fit, NEW, train=(FEATURES, targets))
    with pytest.raises(TypeError, match=r"ViM: expected the Categorical likelihood.*use Mahalanobis"):
        bll.ood.Detector(ood.ViM()).calibrate(fit, NEW, train=(FEATURES, targets))


def test_labels_have_scores_too():
    targets = torch.stack([LABELS > 0, LABELS > 1], -1).long()
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Bernoulli()), (FEATURES, targets), inference=bll.SVI(num_epochs=10)
    )
    view, prediction = View(NEW, fit.posterior), fit.predict(NEW)
    torch.testing.assert_close(ood.PredictiveEntropy().of(view), prediction.total.sum(-1))
    torch.testing.assert_close(ood.Epistemic().of(view), prediction.epistemic.sum(-1))
    torch.testing.assert_close(ood.MaxProbability().of(view), (1 - prediction.confidence).amax(-1))


@pytest.mark.unchecked
def test_declarations_that_make_no_sense():
    with pytest.raises(ValueError, match=r"expected a positive number, got -1"):
        ood.Mahalanobis(ridge=-1)
    with pytest.raises(ValueError, match=r"expected a positive number, got 0"):
        ood.Energy(temperature=0)
    for joined in (ood.Combination, ood.Fisher):
        with pytest.raises(TypeError, match="two or more scores"):
            joined((ood.Leverage(),))
        with pytest.raises(TypeError, match=r"got a Fisher\(...\) among them; name its parts instead"):
            joined((ood.Fisher((ood.Leverage(), ood.Epistemic())), ood.Epistemic()))
    for groups in ((ood.Fisher((ood.Leverage(), ood.Epistemic())),), (ood.Leverage(), ood.Epistemic())):
        with pytest.raises(TypeError, match=r"HarmonicMean\(groups=...\): expected two or more groups"):
            ood.HarmonicMean(groups)
    group = ood.Fisher((ood.Leverage(), ood.Epistemic()))
    for weights in ((1.0,), (1.0, 0.0), (1.0, "2")):
        with pytest.raises(
            ValueError,
            match=r"HarmonicMean\(weights=...\): expected a positive number for each of the 2 groups",
        ):
            ood.HarmonicMean((group, group), weights)
    with pytest.raises(ValueError, match=r"KNearestNeighbours\(k=...\): expected a whole number >= 1, got 0"):
        ood.KNearestNeighbours(0)
    with pytest.raises(ValueError, match="keep at least k rows"):
        ood.KNearestNeighbours(10, most_rows=5)
    with pytest.raises(
        ValueError, match=r"expected a whole number >= 2, got 1; a group of one row is that row"
    ):
        ood.NearestGroup(1)
    with pytest.raises(TypeError, match=r"Leverage\(normalize=...\): expected True or False, got 2"):
        ood.Leverage(normalize=2)
    with pytest.raises(ValueError, match="a positive number for each of the 2 scores"):
        ood.Combination((ood.Leverage(), ood.Epistemic()), weights=(1.0,))
