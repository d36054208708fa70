"""Copies of a fit and of an estimator by joblib, pickle, cloudpickle and copy: predictions are the same to the last bit."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from guide_cases import guides_for
from joblib import Parallel, delayed
from sklearn.model_selection import cross_val_predict
from torch import nn

import bll_pyro as bll
from bll_pyro.inference import Inference
from bll_pyro.prediction import Prediction
from bll_pyro.sklearn import BayesianLastLayerClassifier, BayesianLastLayerCounter, BayesianLastLayerRegressor

pytestmark = pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")  # of very short fits

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 3))
SIGNAL = X[:, 0] + 0.5 * RANDOM.normal(size=60)
FLAGS, COUNTS = (SIGNAL > 0).astype(int), RANDOM.poisson(np.exp(SIGNAL))
NEW = RANDOM.normal(size=(20, 3))
GAUSSIAN, CLASSES = bll.likelihoods.Gaussian(), bll.likelihoods.Categorical(2)
UNIT = bll.priors.Normal(1.0)

INFERENCES: dict[str, tuple[Inference, bll.LastLayer, Any]] = {
    **{
        f"SVI, {name}": (bll.SVI(guide, num_epochs=2), bll.LastLayer(CLASSES, UNIT), FLAGS)
        for name, guide in guides_for(2, 3).items()
    },
    "Exact": (bll.Exact(), bll.LastLayer(GAUSSIAN), SIGNAL),
    "Laplace": (bll.Laplace(bll.curvatures.Full()), bll.LastLayer(CLASSES, UNIT), FLAGS),
    "Laplace, Kronecker": (bll.Laplace(), bll.LastLayer(CLASSES), FLAGS),
    "NUTS": (
        bll.NUTS(num_warmup=4, num_samples=4, num_chains=2, num_processes=1),
        bll.LastLayer(bll.likelihoods.Poisson(), UNIT),
        COUNTS,
    ),
}


def through_joblib(value: Any, folder: Path) -> Any:
    joblib.dump(value, folder / "value.joblib")
    return joblib.load(folder / "value.joblib")


COPIERS: dict[str, Callable[[Any, Path], Any]] = {
    "joblib": through_joblib,
    "pickle": lambda value, _: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value, _: cloudpickle.loads(cloudpickle.dumps(value)),
    "deepcopy": lambda value, _: copy.deepcopy(value),
}


def numbers(prediction: Prediction) -> list[torch.Tensor]:
    """Uncertainties, and the probabilities or means that they are of."""
    first = prediction.probs if hasattr(prediction, "probs") else prediction.mean
    return [first, prediction.total, prediction.epistemic]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", INFERENCES)
def test_a_fit_of_every_inference(name: str, tmp_path: Path) -> None:
    inference, layer, targets = INFERENCES[name]
    fit = bll.fit(layer, (X, targets), inference=inference, calibration=None)
    expected = numbers(fit.predict(NEW))
    for how, copied in COPIERS.items():
        again = copied(fit, tmp_path)
        for ours, theirs in zip(expected, numbers(again.predict(NEW)), strict=True):
            assert torch.equal(ours, theirs), how
        assert again.fingerprint == fit.fingerprint and again.layer == fit.layer, how


def test_a_fit_with_backbone_recalibration_and_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8, dtype=torch.float64), nn.Tanh())
    fit = bll.fit(bll.LastLayer(CLASSES), (X[:40], FLAGS[:40]), network)
    fit = bll.calibrate(fit, X[40:50], FLAGS[40:50])
    detector = bll.ood.Detector(bll.ood.Mahalanobis(), alpha=0.2)
    fit = fit.with_detector(detector.calibrate(fit, X[50:], train=(X[:40], FLAGS[:40])))
    expected = fit.predict(NEW)
    assert fit.recalibration is not None
    for how, copied in COPIERS.items():
        again = copied(fit, tmp_path)
        found = again.predict(NEW)
        assert torch.equal(found.probs, expected.probs), how
        assert torch.equal(found.ood.p_value, expected.ood.p_value), how
        assert again.backbone is not network and again.recalibration == fit.recalibration, how
        with torch.no_grad():
            again.backbone[0].weight.zero_()  # a copy of its own
        assert torch.equal(fit.predict(NEW).probs, expected.probs), how


ESTIMATORS = {
    "classifier": (
        BayesianLastLayerClassifier(nn.Linear(3, 5, dtype=torch.float64)),
        np.array(["no", "yes"])[FLAGS],
    ),
    "regressor": (BayesianLastLayerRegressor(), SIGNAL),
    "counter": (BayesianLastLayerCounter(inference=bll.Laplace()), COUNTS),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator(name: str, tmp_path: Path) -> None:
    estimator, targets = ESTIMATORS[name]
    one = estimator.fit(X, targets)
    for how, copied in COPIERS.items():
        again = copied(one, tmp_path)
        assert (again.predict(NEW) == one.predict(NEW)).all(), how
        if name == "classifier":
            assert (again.predict_proba(NEW) == one.predict_proba(NEW)).all(), how
            assert list(again.classes_) == ["no", "yes"], how
        else:
            assert (again.predict_interval(NEW) == one.predict_interval(NEW)).all(), how
    if name == "regressor":
        more = copy.deepcopy(one).partial_fit(NEW, np.zeros(20))
        assert more.fit_.num_rows == 80 and one.fit_.num_rows == 60


@pytest.mark.slow
def test_two_processes_of_joblib() -> None:
    """Fits travel to other processes and back, and give what they give here."""
    one = BayesianLastLayerRegressor(backbone=None)
    here = cross_val_predict(one, X, SIGNAL, cv=2, n_jobs=1)
    assert (cross_val_predict(one, X, SIGNAL, cv=2, n_jobs=2) == here).all()
    fit = one.fit(X, SIGNAL).fit_
    halves = NEW[:10], NEW[10:]
    for rows, there in zip(halves, Parallel(n_jobs=2)(delayed(fit.predict)(rows) for rows in halves)):
        for ours, theirs in zip(numbers(fit.predict(rows)), numbers(there), strict=True):
            assert torch.equal(ours, theirs)
