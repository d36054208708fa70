"""Detectors of ``pytorch-ood`` as scores: a stand-in with the interface, and the package's own where it is installed."""

import numpy as np
import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro import ood
from bll_pyro.ood.base import View
from bll_pyro.scope import generator

FEATURES = torch.randn(600, 5, generator=generator(1)).abs()
LABELS = (FEATURES[:, 0] > 0.7).long() + (FEATURES[:, 1] > 0.7).long()
TRAIN, KNOWN, NEW = (FEATURES[:200], LABELS[:200]), FEATURES[200:400], FEATURES[400:]
UNKNOWN = 5 + torch.randn(40, 5, generator=generator(2))


class NearestMean:
    """Distance to the nearest class mean, with the methods of a detector of features."""

    def __init__(self) -> None:
        self.means: Tensor | None = None

    def fit_features(self, z: Tensor, y: Tensor) -> "NearestMean":
        torch.rand(1)  # the random state of the caller is none of its business
        self.means = torch.stack([z[y == label].mean(0) for label in y.unique()])
        return self

    def predict_features(self, z: Tensor) -> Tensor:
        return torch.cdist(z, self.means).amin(1)


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return bll.fit(layer, TRAIN, inference=bll.SVI(num_epochs=30))


def test_a_detector_of_features_gets_our_alarm(fit) -> None:
    given, state = NearestMean(), torch.get_rng_state()
    detector = ood.Detector(ood.PytorchOOD(given), 0.1).calibrate(fit, KNOWN, train=TRAIN)
    assert torch.equal(torch.get_rng_state(), state) and given.means is None  # a copy was fitted
    means = np.stack([TRAIN[0][TRAIN[1] == label].mean(0) for label in range(3)])
    expected = np.linalg.norm(NEW.numpy()[:, None] - means, axis=-1).min(1)
    verdict = detector.detect(NEW)
    np.testing.assert_allclose(verdict.score, expected, rtol=1e-4)
    assert verdict.is_ood.double().mean() < 0.25
    assert bool(fit.with_detector(detector).predict(UNKNOWN).ood.is_ood.all())


def test_one_among_others(fit) -> None:
    joined = ood.Fisher((ood.PytorchOOD(NearestMean()), ood.Energy()))
    detector = ood.Detector(joined, 0.1).calibrate(fit, KNOWN, train=TRAIN)
    assert detector.detect(UNKNOWN).is_ood.double().mean() > 0.9
    with pytest.raises(ValueError, match="PytorchOOD needs training rows"):
        ood.Detector(ood.PytorchOOD(NearestMean())).calibrate(fit, KNOWN)


def test_other_targets_count_as_one_class() -> None:
    values = FEATURES[:, 0] + 0.5 * torch.randn(600, generator=generator(3))
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (TRAIN[0], values[:200]), inference=bll.Exact())
    score = ood.PytorchOOD(NearestMean()).fitted(fit.posterior, TRAIN[0], values[:200], lambda other: values)
    assert score.detector.means.shape == (1, 5)


def test_what_it_refuses(fit, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a detector with predict_features, such as .* got str"):
        ood.PytorchOOD("ViM")
    detector = ood.Detector(ood.PytorchOOD(NearestMean()), 0.1).calibrate(fit, KNOWN, train=TRAIN)
    for write in (
        lambda: detector.save(tmp_path / "detector"),
        lambda: fit.with_detector(detector).save(tmp_path / "model"),
        lambda: bll.export.as_module(fit.with_detector(detector)),
    ):
        with pytest.raises(TypeError, match="NearestMean, which cannot be written to a file"):
            write()

    class Wrong(NearestMean):
        def predict_features(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(
        ValueError, match=r"expected one score a row, shape \[200\], from Wrong, got \[200, 5\]"
    ):
        ood.Detector(ood.PytorchOOD(Wrong()), 0.1).calibrate(fit, KNOWN, train=TRAIN)


def test_the_package_itself() -> None:
    """Its scores that we have too are the same, up to a factor."""
    package = pytest.importorskip("pytorch_ood.detector", reason="the extra bll-pyro[ood] is not installed")
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), standardize="common")
    fit = bll.fit(layer, TRAIN, inference=bll.SVI(num_epochs=1))
    pairs = {
        # half the distance by the sum over the 200 training rows, not by their mean
        package.Mahalanobis(None): (ood.Mahalanobis(ridge=1e-9, normalize=False), 2 * 200),
        package.KNN(None, k=10): (ood.KNearestNeighbours(k=10), 1),
    }
    for theirs, (own, factor) in pairs.items():
        detector = ood.Detector(ood.PytorchOOD(theirs), 0.1).calibrate(fit, KNOWN, train=TRAIN)
        score = own.fitted(fit.posterior, *TRAIN, lambda part: part.of(View(KNOWN, fit.posterior)))
        found = detector.detect(UNKNOWN).score.double() * factor
        np.testing.assert_allclose(found, score.of(View(UNKNOWN, fit.posterior)), rtol=1e-3, atol=1e-4)
