"""Detectors on a ResNet-20 for CIFAR-10, with MNIST digits as unknown images: which score separates depends on the network."""

import pytest

import bll_pyro as bll
from benchmarks.data import cifar_features
from bll_pyro import ood
from bll_pyro.ood.base import View

RECORDED_AUROC = {
    "FeatureNorm": (ood.FeatureNorm(), 0.9999),
    "Energy": (ood.Energy(), 0.957),
    "Epistemic": (ood.Epistemic(), 0.966),
}


@pytest.fixture(scope="module")
def task(data_dir):
    return cifar_features(num_unknown=500)


@pytest.fixture(scope="module")
def fit(task):
    """Three times the prior scale that the evidence finds: known rows are judged more timidly, unknown ones better."""
    layer = bll.LastLayer(bll.likelihoods.Categorical(10), bll.priors.Normal(scale=3.0))
    inference = bll.Laplace(curvature=bll.curvatures.Diagonal())
    return bll.fit(layer, (task.train_features, task.train_targets), inference=inference)


@pytest.mark.parametrize("name", RECORDED_AUROC)
def test_separation_does_not_get_worse(name, task, fit):
    score, recorded = RECORDED_AUROC[name]
    known, unknown = (score.of(View(rows, fit.posterior)) for rows in (task.test_features, task.ood_features))
    assert bll.metrics.auroc(known, unknown) >= recorded - 0.01
    if name == "FeatureNorm":
        assert bll.metrics.auroc(known, unknown) >= 0.995
        assert bll.metrics.fpr_at_tpr(known, unknown) <= 0.02


@pytest.mark.parametrize(("of_network", "least"), [(True, 0.99), (False, 0.98)])
def test_the_default_separates(of_network, least, task):
    """Also, a little less, where nothing says that the features are those of a network."""
    rows = bll.Features.from_tensors(task.train_features) if of_network else task.train_features
    layer = bll.LastLayer(bll.likelihoods.Categorical(10))
    fit = bll.fit(
        layer, (rows, task.train_targets), inference=bll.Laplace(curvature=bll.curvatures.Diagonal())
    )
    train = (task.train_features, task.train_targets)
    detector = ood.Detector().calibrate(fit, task.test_features[:500], train=train)
    known, unknown = (detector.detect(part) for part in (task.test_features[500:], task.ood_features))
    assert bll.metrics.auroc(known.score, unknown.score) >= least
    assert (
        bll.metrics.auroc(
            *(
                ood.Leverage().of(View(part, fit.posterior))
                for part in (task.test_features, task.ood_features)
            )
        )
        >= 0.99
    )
