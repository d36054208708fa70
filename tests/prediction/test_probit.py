"""The closed-form approximation of classes and labels: exact where it must be, near brute force elsewhere."""

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.prediction.classes import predict_classes
from bll_pyro.prediction.labels import predict_labels
from bll_pyro.scope import generator

ALL = [slice(None)]
BERNOULLI = bll.likelihoods.Bernoulli()


def outputs(num_rows: int, num_outputs: int, spread: float) -> OutputGaussian:
    random = generator(0)
    loc = 3 * torch.randn(num_rows, num_outputs, generator=random)
    return OutputGaussian(loc, spread * (0.5 + torch.rand(num_rows, num_outputs, generator=random)))


def test_without_spread_it_is_exact() -> None:
    point = OutputGaussian(torch.randn(20, 4, generator=generator(1)))
    layer = bll.likelihoods.Categorical(4, temperature=1.5)
    exact = predict_classes(point, layer, {}, bll.QuasiMonteCarlo(1))
    found = predict_classes(point, layer, {}, bll.Probit())
    for name in ("probs", "total", "aleatoric", "epistemic"):
        assert torch.allclose(getattr(found, name), getattr(exact, name), atol=2e-6), name
    assert found.error is None
    labels = predict_labels(point, BERNOULLI, {}, False, bll.Probit())
    assert torch.allclose(labels.probs, point.loc.sigmoid())
    assert torch.allclose(labels.epistemic, torch.zeros_like(point.loc), atol=2e-6)


def test_temperature_divides_the_outputs() -> None:
    given = outputs(10, 3, 1.0)
    cooled = OutputGaussian(given.loc / 2, given.scale / 2)
    one = predict_classes(given, bll.likelihoods.Categorical(3, temperature=2.0), {}, bll.Probit())
    two = predict_classes(cooled, bll.likelihoods.Categorical(3), {}, bll.Probit())
    assert torch.allclose(one.probs, two.probs, atol=1e-6)
    assert torch.allclose(one.aleatoric, two.aleatoric, atol=1e-5)


def test_a_predictive_temperature_keeps_the_share_that_is_aleatoric() -> None:
    given, layer = outputs(50, 5, 1.0), bll.likelihoods.Categorical(5)
    before = predict_classes(given, layer, {}, bll.Probit())
    after = predict_classes(given, layer, {}, bll.Probit(), temperature=2.5)
    wanted = before.probs.double() ** 0.4
    torch.testing.assert_close(after.probs.double(), wanted / wanted.sum(-1, keepdim=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(after.total, torch.special.entr(after.probs).sum(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        after.aleatoric / after.total, before.aleatoric / before.total, rtol=0, atol=1e-4
    )
    assert torch.equal(after.label, before.label)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_labels_against_quadrature(spread: float) -> None:
    """MacKay's error is below 0.02 for every mean and variance; in the entropies it is multiplied by the variance."""
    given = outputs(200, 1, spread)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    points = given.loc.double().numpy() + given.scale.double().numpy() * nodes
    probs = 1 / (1 + np.exp(-points))
    entropy = np.logaddexp(0, points) - probs * points
    weights = weights / weights.sum()
    found = predict_labels(given, BERNOULLI, {}, True, bll.Probit())
    assert np.abs(found.probs.numpy() - probs @ weights).max() < 0.02
    assert np.abs(found.aleatoric.numpy() - entropy @ weights).max() < 0.02 + 0.015 * spread**2
    assert torch.allclose(found.total, found.aleatoric + found.epistemic, atol=1e-6)


@pytest.mark.parametrize(("spread", "limit"), [(0.3, 0.01), (1.0, 0.04), (3.0, 0.08)])
def test_classes_against_many_points(spread: float, limit: float) -> None:
    """Root mean square errors of probabilities, and of entropies in nats (three times as large at most)."""
    given, layer = outputs(100, 5, spread), bll.likelihoods.Categorical(5)
    exact = predict_classes(given, layer, {}, bll.QuasiMonteCarlo(8192))
    found = predict_classes(given, layer, {}, bll.Probit())
    for name, allowed in (("probs", limit), ("aleatoric", 3 * limit), ("epistemic", 3 * limit)):
        error = (getattr(found, name) - getattr(exact, name)).square().mean().sqrt()
        assert error < allowed, name
    assert torch.allclose(found.probs.sum(-1), torch.ones(100), atol=1e-6)
    assert bool((found.epistemic >= 0).all() and (found.aleatoric >= 0).all())


@pytest.fixture(scope="module")
def labelled() -> bll.Fit:
    random = generator(2)
    features = torch.randn(80, 3, generator=random)
    labels = (features[:, :2] + torch.randn(80, 2, generator=random) > 0).float()
    return bll.fit(bll.LastLayer(likelihood=BERNOULLI), (features, labels), inference=bll.SVI(num_epochs=30))


def test_labels_of_a_row_are_taken_one_by_one(labelled: bll.Fit) -> None:
    rows, targets = torch.randn(7, 3, generator=generator(3)), torch.tensor([[0.0, 1.0]]).expand(7, 2)
    found, exact = labelled.predict(rows, integration=bll.Probit()), labelled.predict(rows)
    expected = torch.stack([1 - found.probs[:, 0], found.probs[:, 1]]).log().sum(0)
    assert torch.allclose(found.log_prob(targets), expected, atol=1e-6)
    assert torch.allclose(found.probs, exact.probs, atol=0.02)
    assert found.error is None
    assert exact.error.shape == exact.probs.shape


def test_other_likelihoods_refuse() -> None:
    features = torch.randn(20, 2, generator=generator(4))
    fit = bll.fit(
        bll.LastLayer(likelihood=bll.likelihoods.Gaussian(1.0)),
        (features, features[:, 0]),
        inference=bll.Exact(),
    )
    with pytest.raises(TypeError, match="expected a fit with Categorical or Bernoulli, got Gaussian"):
        fit.predict(features, integration=bll.Probit())


@pytest.mark.parametrize("num_points", [64, 256])
def test_the_reported_error_of_the_integration_is_honest(num_points: int) -> None:
    """Over many rows the true error is no larger than the reported one, which is not larger by orders either."""
    given, layer = outputs(200, 6, 1.0), bll.likelihoods.Categorical(6)
    truth = predict_classes(given, layer, {}, bll.QuasiMonteCarlo(16384, seed=7)).probs
    for seed in range(3):
        found = predict_classes(given, layer, {}, bll.QuasiMonteCarlo(num_points, seed=seed))
        actual = (found.probs - truth).square().mean().sqrt()
        reported = found.error.square().mean().sqrt()
        assert actual < 1.1 * reported
        assert reported < 10 * actual


def test_the_reported_error_of_draws_is_their_standard_error() -> None:
    """For independent draws the mean square of half the distance of two halves is the variance of the mean."""
    from bll_pyro.gaussian.points import halves

    values = torch.randn(50, 4000, generator=generator(5))
    mean, error = halves(values)
    assert torch.allclose(mean, values.mean(0), atol=1e-6)
    # mean square of 4,000 squared normals: relative error sqrt(2 / 4000)
    assert error.square().mean() == pytest.approx(1 / 50, rel=4 * (2 / 4000) ** 0.5)
    assert torch.equal(halves(values[:1])[0], values[0])
    assert bool(halves(values[:1])[1].isnan().all())


@pytest.mark.parametrize("kind", ["diagonal", "mixing", "factor", "point"])
def test_classes_first_equals_classes_last(kind: str) -> None:
    """Long vectors first is only another order of the same sums."""
    given = outputs(9, 4, 1.0)
    random = generator(6)
    if kind == "mixing":
        given = OutputGaussian(given.loc, given.scale[:, :1], mixing=torch.randn(4, 4, generator=random))
    elif kind == "factor":
        given = OutputGaussian(given.loc, given.scale, factor=torch.randn(9, 4, 2, generator=random))
    elif kind == "point":
        given = OutputGaussian(given.loc)
    layer = bll.likelihoods.Categorical(4, temperature=0.7)
    kept = given.loc.clone()
    found = layer.class_expectations(given, ALL, 32, 1)
    expected = super(type(layer), layer).class_expectations(given, ALL, 32, 1)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=3e-6, equal_nan=True)
    assert torch.equal(given.loc, kept)


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 500.0])
@pytest.mark.parametrize("num_points", [2, 7, 64])
def test_independent_outputs_need_no_largest_logit(scale: float, num_points: int) -> None:
    """The same without a maximum for each draw; where the exponentials might overflow, with it."""
    given = outputs(50, 5, 3.0)
    given = OutputGaussian(given.loc, torch.full_like(given.loc, scale))
    layer = bll.likelihoods.Categorical(5)
    expected = super(type(layer), layer).class_expectations(given, ALL, num_points, 1)
    found = layer.class_expectations(given, ALL, num_points, 1)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=3e-6 * max(1.0, scale))
