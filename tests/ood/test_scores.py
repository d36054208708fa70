"""Scores against SciPy and explicit sums."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

import bll_pyro as bll
from bll_pyro import ood
from bll_pyro.ood.base import View

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
    np.testing.assert_allclose(ood.Leverage().of(view), expected, atol=5 * (2 / 40_000) ** 0.5)


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
    np.testing.assert_allclose(ood.Leverage().of(View(NEW, fit.posterior)), expected, rtol=1e-4)
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


def distances(fit, ridge):
    """Squared distances of the new rows to each class and to all rows, by SciPy."""
    train, new, labels = standardized(fit, FEATURES), standardized(fit, NEW), LABELS.numpy()
    means = np.stack([train[labels == c].mean(0) for c in range(3)])

    def squared(centred, centres):
        covariance = centred.T @ centred / len(centred)
        covariance += ridge * np.trace(covariance) / 5 * np.eye(5)
        return cdist(new, centres, "mahalanobis", VI=np.linalg.inv(covariance)) ** 2

    total = train.mean(0, keepdims=True)
    return squared(train - means[labels], means).min(-1), squared(train - total, total)[:, 0]


def test_mahalanobis_against_scipy(fit, view):
    nearest, background = distances(fit, 1e-3)
    np.testing.assert_allclose(fitted(ood.Mahalanobis(), fit).of(view), nearest, rtol=1e-4)
    relative = fitted(ood.RelativeMahalanobis(), fit).of(view)
    np.testing.assert_allclose(relative, nearest - background, rtol=1e-3, atol=1e-4)


def test_mahalanobis_bears_features_that_are_constant_in_training(fit):
    rows = torch.cat([FEATURES[:, :4], torch.ones(300, 1)], 1)
    constant = bll.fit(fit.layer, (rows, LABELS), inference=bll.SVI(num_epochs=1))
    score = ood.Mahalanobis().fitted(constant.posterior, rows, LABELS, lambda other: torch.zeros(300))
    moved = rows.clone()
    moved[:, 4] += 3
    known, unknown = (score.of(View(part, constant.posterior)) for part in (rows, moved))
    assert bool(torch.isfinite(known).all()) and float(unknown.min()) > float(known.max())


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


@pytest.mark.parametrize("score", [ood.PredictiveEntropy(), ood.MaxProbability(), ood.Energy()])
def test_scores_of_classes_refuse_real_values(score):
    targets = FEATURES[:, 0] + torch.randn(300, generator=GENERATOR)
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (FEATURES, targets), inference=bll.Exact())
    with pytest.raises(TypeError, match=r"expected .* got .*; use"):
        bll.ood.Detector(score).calibrate(fit, FEATURES)
    with pytest.raises(TypeError, match="use Mahalanobis"):
        bll.ood.Detector(ood.RelativeMahalanobis()).calibrate(fit, NEW, train=(FEATURES, targets))


def test_labels_have_scores_too():
    targets = torch.stack([LABELS > 0, LABELS > 1], -1).long()
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Bernoulli()), (FEATURES, targets), inference=bll.SVI(num_epochs=10)
    )
    view, prediction = View(NEW, fit.posterior), fit.predict(NEW)
    torch.testing.assert_close(ood.PredictiveEntropy().of(view), prediction.total.sum(-1))
    torch.testing.assert_close(ood.Epistemic().of(view), prediction.epistemic.sum(-1))
    torch.testing.assert_close(ood.MaxProbability().of(view), (1 - prediction.confidence).amax(-1))


def test_declarations_that_make_no_sense():
    with pytest.raises(ValueError, match=r"expected a positive number, got -1"):
        ood.Mahalanobis(ridge=-1)
    with pytest.raises(ValueError, match=r"expected a positive number, got 0"):
        ood.Energy(temperature=0)
    with pytest.raises(TypeError, match="two or more scores"):
        ood.Combination((ood.Leverage(),))
    with pytest.raises(ValueError, match="a positive number for each of the 2 scores"):
        ood.Combination((ood.Leverage(), ood.Epistemic()), weights=(1.0,))
