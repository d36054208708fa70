"""Numbers of NumPy's are as good as Python's own, in declarations and as arguments, and are kept as plain ones."""

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.checks import plain_numbers
from bll_pyro.declaration import Declaration, to_plain

L, P, G, C = bll.likelihoods, bll.priors, bll.guides, bll.criteria
I, F = np.int64, np.float32
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 3)).astype("float32")
Y = X[:, 0] + 0.1 * RANDOM.normal(size=60).astype("float32")
LABELS = (X[:, 0] > 0).astype(int)

DECLARED: list[Declaration] = [
    L.Categorical(LABELS.max() + 1, temperature=F(1.5)),
    L.Ordinal(np.int8(3), F(5.0)),
    L.Gaussian(F(0.5)),
    L.Gaussian([F(0.5), I(1)]),  # type: ignore[arg-type]  # a list becomes a tuple
    L.StudentT(df=I(5), noise_scale=F(0.1)),
    L.NegativeBinomial(np.uint16(3)),
    L.MultivariateGaussian(concentration=np.float16(2.0)),
    P.Normal(F(0.5)),
    P.Normal(per_output=np.bool_(True)),
    P.Laplace(F(0.5)),
    P.StudentT(df=I(5), scale=F(0.5)),
    P.Horseshoe(num_relevant=I(2), slab_scale=F(2.0)),
    P.SpikeAndSlab(F(0.01), F(1.0), F(0.5)),
    P.HierarchicalNormal(per_output=np.bool_(False)),
    bll.LastLayer(L.Bernoulli(), bias_scale=F(3.0), bias=np.bool_(True), standardize=np.bool_(True)),
    G.LowRank(I(2)),
    G.Flow(num_layers=I(1)),
    G.Custom("AutoLowRankMultivariateNormal", {"rank": I(2)}),
    bll.SVI(num_epochs=I(3), batch_size=I(20), learning_rate=F(0.02), clip_norm=F(1.0), patience=I(2)),
    bll.SVI(backbone_learning_rate=np.float64(1e-3)),
    bll.BackboneTraining(
        warmup=F(1.0), layer_decay=F(0.5), accumulate=I(2), compile=np.bool_(False), frozen_epochs=I(1)
    ),
    bll.Imported("torch.optim.SGD", {"momentum": F(0.9), "nesterov": np.bool_(True)}),
    bll.NUTS(num_samples=I(50), num_warmup=I(50), num_chains=I(1), target_accept=F(0.9), num_processes=I(1)),
    bll.Laplace(tolerance=F(1e-3), max_steps=I(50)),
    bll.Exact(bll.noises.Conjugate(F(3.0), F(1.0))),
    C.CrossValidation(I(5), F(4.0)),
    bll.ood.Detector(alpha=F(0.1)),
    bll.ood.Energy(F(2.0)),
    bll.ood.Mahalanobis(F(1e-2)),
    bll.ood.Combination((bll.ood.Leverage(), bll.ood.Epistemic()), weights=(F(1.0), I(2))),
    bll.conformal.PredictionSets(alpha=F(0.1), allow_empty=np.bool_(False)),
    bll.conformal.PredictionIntervals(alpha=F(0.1)),
    bll.conformal.APS(seed=I(3)),
]


@pytest.mark.parametrize("declared", DECLARED, ids=lambda d: type(d).__name__)
def test_declarations_keep_plain_numbers(declared: Declaration) -> None:
    plain_data = to_plain(declared, {})
    assert json.loads(json.dumps(plain_data)) == plain_data
    assert "np." not in repr(declared)


def test_plain_numbers() -> None:
    given = {"a": [I(1), F(0.5)], "b": (np.bool_(True), "text", None, Fraction(1, 4), 2)}
    assert repr(plain_numbers(given)) == "{'a': [1, 0.5], 'b': (True, 'text', None, 0.25, 2)}"
    array = np.arange(3)
    assert plain_numbers(array) is array


@pytest.mark.parametrize("value", [np.bool_(True), True, F(2.0), np.array([3])])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number >= 2"):
        L.Categorical(value)
    with pytest.raises(ValueError, match="expected a whole number >= 1"):
        bll.SVI(num_epochs=value)


@pytest.mark.parametrize("value", [F("nan"), F(-1.0), I(0), np.array([1.0])])
def test_what_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        P.Normal(value)
    with pytest.raises(ValueError, match="expected a positive number"):
        bll.SVI(learning_rate=value)


def test_arguments_of_functions(tmp_path: Any) -> None:
    layer = bll.LastLayer(L.Gaussian())
    net = nn.Linear(3, 2)
    fit = bll.fit(layer, (X, Y), net, bll.Exact(), seed=I(1), batch_size=I(16))
    fit.save(tmp_path)
    assert bll.load(tmp_path, backbone=nn.Linear(3, 2)).seed == 1
    prediction = fit.predict(X, batch_size=I(16), integration=bll.QuasiMonteCarlo(I(32), I(1)))
    lower, upper = prediction.interval(F(0.9))
    assert bool((lower < upper).all())
    assert prediction.quantile(F(0.5)).shape == (60,)
    assert prediction.sample(I(4), seed=I(1)).shape == (4, 60)
    assert prediction.pit(Y, seed=I(1)).shape == (60,)
    tree = fit.to_datatree(X, Y, num_draws=I(8), thin=I(1), prior=I(4), seed=I(0))
    assert tree["posterior"].sizes["draw"] == 8
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")  # attributes are plain
    assert fit.posterior.sample(I(3), I(0))["weight"].shape[1] == 3
    assert np.isfinite(bll.loo(fit, (X, Y), num_rows=I(20), seed=I(0)).elpd)
    assert bll.extract(net, X, batch_size=I(16)).num_rows == 60
    tree = bll.prior_predictive(bll.LastLayer(L.Gaussian(), P.Normal(1.0)), X, Y, num_draws=I(5), seed=I(0))
    assert tree["prior_predictive"].sizes["draw"] == 5
    assert bll.diagnose(fit, X, Y, num_draws=I(20), num_rows=I(20), seed=I(0)).verdict


def test_classes_found_in_the_data(tmp_path: Any) -> None:
    fit = bll.fit(
        bll.LastLayer(L.Categorical(LABELS.max() + 1)), (X, LABELS), inference=bll.SVI(num_epochs=I(2))
    )
    detector = bll.ood.Detector(alpha=F(0.2)).calibrate(fit, X, batch_size=I(32))
    fit = fit.with_detector(detector)
    fit.save(tmp_path)
    assert torch.equal(bll.load(tmp_path).predict(X).probs, fit.predict(X).probs)
    sets = bll.conformal.PredictionSets(alpha=F(0.2)).calibrate(fit, X, LABELS)
    assert sets.predict(X).shape == (60, 2)
    assert bll.metrics.ece(fit.predict(X).probs, LABELS, num_bins=I(5)) >= 0
