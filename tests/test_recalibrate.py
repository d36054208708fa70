"""Recalibration: what was injected is recovered, no predicted class changes, and the parts still add up."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import bll_pyro as bll
from bll_pyro.prediction.recalibration import NoiseFactor, PredictiveTemperature, averaged, averaged_parts
from bll_pyro.scope import isolated

GENERATOR = torch.Generator().manual_seed(2)
FEATURES = torch.randn(300, 4, generator=GENERATOR)
LABELS = (FEATURES[:, 0] > 0).long() + (FEATURES[:, 1] > 0.5).long()
VALUES = FEATURES @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.3 * torch.randn(300, generator=GENERATOR)
HELD_OUT = torch.randn(30_000, 4, generator=GENERATOR)
SHORT = bll.SVI(num_epochs=40)


@pytest.fixture(scope="module")
def bayesian():
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return bll.fit(layer, (FEATURES, LABELS), inference=SHORT, calibration=None)


@pytest.fixture(scope="module")
def plain():
    return bll.fit(
        bll.LastLayer(bll.likelihoods.Categorical(3)),
        (FEATURES, LABELS),
        inference=bll.SVI(guide=bll.guides.MAP(), num_epochs=40),
        calibration=None,
    )


def labels_at(probs, temperature, seed=0):
    """Labels drawn from the tempered probabilities."""
    logits = probs.double().log() / temperature
    uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (logits - (-uniform.log()).log()).argmax(-1)


@pytest.mark.parametrize("head", ["plain", "bayesian"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_an_injected_temperature_is_recovered(head, temperature, request):
    """Within 2 %, with as many rows as that takes."""
    fit = request.getfixturevalue(head)
    probs = fit.predict(HELD_OUT).probs
    labels = labels_at(probs, temperature)
    found = bll.calibrate(fit, HELD_OUT, labels).recalibration
    assert isinstance(found, PredictiveTemperature)
    assert found.temperature == pytest.approx(temperature, rel=0.02)


def test_the_temperature_maximises_the_held_out_likelihood(bayesian):
    rows, labels = HELD_OUT[:500], labels_at(bayesian.predict(HELD_OUT[:500]).probs, 1.7)
    log_probs = bayesian.predict(rows).probs.double().log().numpy()

    def loss(log_t):
        return log_t**2 / 2 - log_softmax(log_probs / np.exp(log_t), -1)[np.arange(500), labels].sum()

    best = minimize_scalar(loss, bracket=(-1, 1)).x
    found = bll.calibrate(bayesian, rows, labels)
    assert found.recalibration.temperature == pytest.approx(math.exp(best), rel=1e-4)
    after = -float(found.predict(rows).log_prob(labels).sum())
    assert after <= -float(bayesian.predict(rows).log_prob(labels).sum())
    assert after == pytest.approx(loss(best) - best**2 / 2, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.5, 6.0])
def test_no_predicted_class_changes_and_parts_add_up(bayesian, temperature):
    before = bayesian.predict(HELD_OUT[:6000])
    labels = labels_at(before.probs[:1000], temperature)
    found = bll.calibrate(bayesian, HELD_OUT[:1000], labels)
    after = found.predict(HELD_OUT[:6000])
    assert torch.equal(before.label, after.label)
    torch.testing.assert_close(after.aleatoric + after.epistemic, after.total, atol=1e-6, rtol=0)
    assert float(after.epistemic.min()) >= 0 and float(after.aleatoric.min()) >= -1e-6
    torch.testing.assert_close(after.probs.sum(-1), torch.ones(len(after)))


def test_classes_that_differ_in_the_last_bit_keep_their_order():
    first = torch.full((1000,), 0.3)
    second = torch.nextafter(first, torch.ones(()))
    rows = torch.stack([first, second, 1 - first - second], -1)
    for temperature in (1.1, 3.0, 20.0):
        probs, _ = averaged(rows[None], temperature)
        assert torch.equal(probs.argmax(-1), rows.argmax(-1))
    uniform = torch.rand(20_000, 10, generator=torch.Generator().manual_seed(0)) * 1e-6 + 0.1
    probs, _ = averaged(uniform[None], 10.0)
    assert torch.equal(probs.argmax(-1), uniform.argmax(-1))


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_tempered_decomposition_belongs_to_one_joint_distribution(temperature):
    """Brute force over the table of draw and class: tilt it by the class, and read both entropies off it."""
    random = np.random.default_rng(0)
    conditional = random.dirichlet(np.full(4, 0.5), size=(7, 5))
    mean = conditional.mean(0)
    joint = conditional / 7 * mean ** (1 / temperature - 1)
    joint /= joint.sum((0, 2), keepdims=True)
    classes, draws = joint.sum(0), joint.sum(2)
    np.testing.assert_allclose(
        classes, mean ** (1 / temperature) / (mean ** (1 / temperature)).sum(-1, keepdims=True)
    )
    given = joint / draws[..., None]
    expected = (draws * -(given * np.log(given)).sum(-1)).sum(0)
    for probs, found in (
        averaged(torch.from_numpy(conditional), temperature),
        averaged_parts(torch.from_numpy(conditional).log().split(4), temperature),
    ):
        np.testing.assert_allclose(probs, classes, rtol=1e-9)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # what a class tells about the draw is as before
    np.testing.assert_allclose(joint / classes, conditional / conditional.sum(0))


def test_temperature_of_a_point_is_temperature_scaling(plain):
    found = bll.calibrate(plain, HELD_OUT[:500], labels_at(plain.predict(HELD_OUT[:500]).probs, 2.0))
    logits = plain.posterior.outputs(HELD_OUT[:50]).mean
    expected = (logits / found.recalibration.temperature).softmax(-1)
    torch.testing.assert_close(found.predict(HELD_OUT[:50]).probs, expected, atol=1e-5, rtol=1e-4)


def test_rows_without_an_error_do_not_ask_for_certainty(bayesian):
    rows = HELD_OUT[:50]
    found = bll.calibrate(bayesian, rows, bayesian.predict(rows).label)
    assert 0.05 < found.recalibration.temperature < 1


@pytest.mark.parametrize("likelihood", [bll.likelihoods.Bernoulli(), bll.likelihoods.Ordinal(3)])
def test_labels_and_ordered_classes(likelihood):
    ordinal = isinstance(likelihood, bll.likelihoods.Ordinal)
    targets = LABELS if ordinal else (LABELS > 0).long()
    fit = bll.fit(bll.LastLayer(likelihood), (FEATURES, targets), inference=SHORT)
    rows = HELD_OUT[:10_000]
    before = fit.predict(rows)
    probs = before.probs if ordinal else torch.stack([1 - before.probs, before.probs], -1)
    labels = labels_at(probs, 2.0)
    found = bll.calibrate(fit, rows, labels)
    after = found.predict(rows)
    assert found.recalibration.temperature == pytest.approx(2.0, rel=0.06)
    assert torch.equal(before.label, after.label)
    torch.testing.assert_close(after.aleatoric + after.epistemic, after.total, atol=1e-6, rtol=0)
    assert float(after.log_prob(labels).mean()) > float(before.log_prob(labels).mean())
    assert after.log_prob(labels).shape == (10_000,)


def test_several_labels_have_one_temperature(tmp_path):
    """It is found; each label is tempered as if alone; and together they count as independent, which they are here."""
    targets = torch.stack([LABELS > 0, LABELS > 1], -1).long()
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Bernoulli()), (FEATURES, targets), inference=SHORT)
    rows = HELD_OUT[:10_000]
    before = fit.predict(rows)
    pairs = torch.stack([1 - before.probs, before.probs], -1)
    labels = labels_at(pairs, 2.0)
    found = bll.calibrate(fit, rows, labels)
    temperature = found.recalibration.temperature
    assert temperature == pytest.approx(2.0, rel=0.05)
    after = found.predict(rows)
    expected = (pairs.double().log() / temperature).softmax(-1)
    torch.testing.assert_close(after.probs.double(), expected[..., 1], rtol=1e-4, atol=1e-6)
    assert torch.equal(before.label, after.label)
    torch.testing.assert_close(after.aleatoric + after.epistemic, after.total, atol=1e-6, rtol=0)
    assert float(after.epistemic.min()) >= 0
    chosen = expected.gather(-1, labels[..., None]).log().sum((-1, -2))
    torch.testing.assert_close(after.log_prob(labels).double(), chosen, rtol=1e-3, atol=1e-4)
    assert float(after.log_prob(labels).mean()) > float(before.log_prob(labels).mean())
    # weights of the labels are independent under this guide, so that the joint probability is the product
    alone = pairs.gather(-1, labels[..., None]).log().sum((-1, -2))
    torch.testing.assert_close(before.log_prob(labels), alone, rtol=0.01, atol=0.02)
    found.save(tmp_path)
    assert torch.equal(bll.load(tmp_path).predict(FEATURES).probs, found.predict(FEATURES).probs)


@pytest.mark.parametrize(
    ("likelihood", "inference"),
    [
        (bll.likelihoods.Gaussian(), bll.Exact()),
        (bll.likelihoods.Gaussian(noise_scale=0.3), bll.Exact()),
        (bll.likelihoods.Gaussian(), SHORT),
        (bll.likelihoods.StudentT(df=4.0, noise_scale=0.3), SHORT),
        (bll.likelihoods.StudentT(), SHORT),
        (bll.likelihoods.HeteroscedasticGaussian(), SHORT),
        (bll.likelihoods.MultivariateGaussian(), SHORT),
        (bll.likelihoods.MultivariateGaussian([[0.09, 0.05], [0.05, 0.16]]), SHORT),
    ],
)
@pytest.mark.thinned(5)
def test_an_injected_noise_factor_is_recovered(likelihood, inference):
    tied = isinstance(likelihood, bll.likelihoods.MultivariateGaussian)
    values = torch.stack([VALUES, 0.2 * FEATURES[:, 3] - VALUES], 1) if tied else VALUES
    fit = bll.fit(bll.LastLayer(likelihood), (FEATURES, values), inference=inference)
    rows = HELD_OUT[:4000]
    scaled = bll.Fit(**(vars(fit) | {"recalibration": NoiseFactor(2.0)}))
    with isolated(0):
        targets = scaled.predict(rows).sample(1, seed=1)[0]
    found = bll.calibrate(fit, rows, targets)
    assert found.recalibration.factor == pytest.approx(2.0, rel=0.06)
    before, after = fit.predict(rows), found.predict(rows)
    torch.testing.assert_close(before.mean, after.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(before.epistemic, after.epistemic, rtol=1e-3, atol=1e-5)
    factor = found.recalibration.factor
    torch.testing.assert_close(before.aleatoric * factor**2, after.aleatoric, rtol=1e-3, atol=1e-5)
    assert float(after.log_prob(targets).mean()) > float(before.log_prob(targets).mean())


def test_saved_and_loaded(tmp_path, bayesian):
    found = bll.calibrate(bayesian, HELD_OUT[:300], labels_at(bayesian.predict(HELD_OUT[:300]).probs, 1.5))
    found.save(tmp_path)
    again = bll.load(tmp_path)
    assert again.recalibration == found.recalibration and again.fingerprint == found.fingerprint
    assert torch.equal(again.predict(FEATURES).probs, found.predict(FEATURES).probs)
    twice = bll.calibrate(found, HELD_OUT[:300], labels_at(bayesian.predict(HELD_OUT[:300]).probs, 1.5))
    assert twice.recalibration == found.recalibration  # from the fit as it is, not on top


def test_what_it_refuses(bayesian):
    counts = bll.fit(
        bll.LastLayer(bll.likelihoods.Poisson()), (FEATURES, LABELS), inference=bll.SVI(num_epochs=2)
    )
    with pytest.raises(
        TypeError,
        match=r"expected classes, labels, or a likelihood with a noise scale.*follows from their mean",
    ):
        bll.calibrate(counts, FEATURES, LABELS)
    both = torch.stack([LABELS > 0, LABELS > 1], -1).long()
    labels = bll.fit(
        bll.LastLayer(bll.likelihoods.Bernoulli()), (FEATURES, both), inference=bll.SVI(num_epochs=2)
    )
    with pytest.raises(ValueError, match=r"expected shape \[300, 2\], got \[300\]"):
        bll.calibrate(labels, FEATURES, both[:, 0])
    with pytest.raises(ValueError, match="expected as many targets as inputs, got 300 inputs and 10 targets"):
        bll.calibrate(bayesian, FEATURES, LABELS[:10])
    with pytest.raises(ValueError, match="expected labels from 0 to 2"):
        bll.calibrate(bayesian, FEATURES, LABELS + 5)
    watched = bayesian.with_detector(bll.ood.Detector().calibrate(bayesian, HELD_OUT[:100]))
    with pytest.raises(ValueError, match="calibrate the fit first, then the detector"):
        bll.calibrate(watched, FEATURES, LABELS)


@pytest.mark.parametrize("labels", [False, True])
def test_probit_of_a_recalibrated_fit(labels):
    """Its own probabilities, tempered; the aleatoric share of the entropy near that of the draws."""
    likelihood = bll.likelihoods.Bernoulli() if labels else bll.likelihoods.Categorical(3)
    fit = bll.fit(
        bll.LastLayer(likelihood), (FEATURES, LABELS.clamp_max(1) if labels else LABELS), inference=SHORT
    )
    changed = replace(fit, recalibration=PredictiveTemperature(0.6))
    plain, found = (one.predict(FEATURES, integration=bll.Probit()) for one in (fit, changed))
    probs = torch.stack([1 - plain.probs, plain.probs], -1) if labels else plain.probs
    expected = (probs.log() / 0.6).softmax(-1)
    torch.testing.assert_close(found.probs, expected[..., 1] if labels else expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.aleatoric + found.epistemic, found.total, atol=1e-6, rtol=0)
    drawn = changed.predict(FEATURES)
    assert float((found.epistemic - drawn.epistemic).abs().max()) < 0.02
    assert float(drawn.epistemic.max()) > 0.03


def test_an_update_drops_a_recalibration_and_says_so():
    """So it is the fit of all rows, as documented."""
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian(0.3)), (FEATURES[:200], VALUES[:200]), inference=bll.Exact()
    )
    expected = fit.update((FEATURES[200:], VALUES[200:]))
    changed = replace(fit, recalibration=NoiseFactor(2.0))
    with pytest.warns(bll.FitWarning, match=r"NoiseFactor\(factor=2.0\) was of the earlier posterior"):
        found = changed.update((FEATURES[200:], VALUES[200:]))
    assert found.recalibration is None and found.fingerprint == expected.fingerprint


def test_evaluation_is_of_the_fit_with_its_recalibration(bayesian, plain):
    changed = replace(bayesian, recalibration=PredictiveTemperature(3.0))
    rows, held_out = (FEATURES[:100], LABELS[:100]), (FEATURES[100:], LABELS[100:])
    found = bll.evaluate(changed, rows, held_out=held_out, plain=plain).scores
    before = bll.evaluate(bayesian, rows, held_out=held_out, plain=plain).scores
    nll = -float(changed.predict(rows[0]).log_prob(rows[1]).mean())
    assert found["Bayesian"]["NLL"] == pytest.approx(nll, rel=1e-5)
    assert found["Bayesian"]["NLL"] > 1.2 * before["Bayesian"]["NLL"]
    assert found["Bayesian, calibrated"] == before["Bayesian, calibrated"]


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")
def test_diagnose_judges_the_recalibrated_prediction(draws):
    """Much too certain, or its noise much too small: the checks of the prediction see it."""
    inference = bll.NUTS(num_samples=200, num_warmup=200, num_chains=2) if draws else bll.Exact()
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian(0.3)), (FEATURES, VALUES), inference=inference)
    changed = replace(fit, recalibration=NoiseFactor(0.3))
    name = "predictive (PIT)"
    good, bad = (
        bll.diagnose(one, (FEATURES, VALUES), seen_by_backbone=False)[name] for one in (fit, changed)
    )
    assert good.value < 0.05 < bad.value and "too narrow" in bad.finding
