"""Every argument of a public function that cannot be used is refused with what was expected and what was got."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import bll_pyro as bll

pytestmark = pytest.mark.unchecked  # the functions' own messages, not those of the annotations

L = bll.likelihoods
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 2)).astype("float32")
Y = X[:, 0] + 0.1 * RANDOM.normal(size=60).astype("float32")
LABELS = (X[:, 0] > 0).astype(np.int64)
NET = nn.Linear(2, 2)
LAYER = bll.LastLayer(L.Gaussian(), bll.priors.Normal(1.0))
QUICK = bll.SVI(num_epochs=1)
TWO = [LAYER, bll.LastLayer(L.Gaussian(), bll.priors.Normal(0.5))]


@pytest.fixture(scope="module")
def fit():
    return bll.fit(LAYER, (X, Y), NET, bll.Exact())


@pytest.fixture(scope="module")
def classes():
    return bll.fit(bll.LastLayer(L.Categorical(2)), (X, LABELS), inference=bll.SVI(num_epochs=20))


def refused(call, expected, got, error=ValueError):
    with pytest.raises(error, match=f"expected {expected}.*got .*{re.escape(got)}"):
        call()


@pytest.mark.parametrize("size", [0, -1, 1.5, None, "a", True])
def test_batch_sizes(fit, size):
    for call in (
        lambda: fit.predict(X, batch_size=size),
        lambda: fit.head.predict(X, batch_size=size),
        lambda: fit.draw(X, 2, batch_size=size),
        lambda: bll.fit(LAYER, (X, Y), NET, bll.Exact(), batch_size=size),
        lambda: bll.choose(TWO, (X, Y), NET, bll.Exact(), batch_size=size),
        lambda: bll.extract(NET, X, batch_size=size),
        lambda: bll.ood.Detector().calibrate(fit, X, batch_size=size),
        lambda: list(bll.Features.from_tensors(X).batches(size)),
    ):
        refused(call, "a whole number >= 1", repr(size))


@pytest.mark.parametrize("number", [0, -1, 1.5, "a"])
def test_numbers_of_draws(fit, number):
    for call in (
        lambda: fit.posterior.sample(number),
        lambda: fit.predict(X).sample(number),
        lambda: fit.draw(X, number),
        lambda: fit.to_datatree(X, Y, num_draws=number),
        lambda: bll.prior_predictive(LAYER, X, Y, num_draws=number),
        lambda: bll.QuasiMonteCarlo(number),
    ):
        refused(call, "a whole number >= 1", repr(number))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "a"])
def test_seeds(fit, classes, seed):
    for call in (
        lambda: bll.fit(LAYER, (X, Y), inference=QUICK, seed=seed),
        lambda: bll.choose(TWO, (X, Y), inference=QUICK, seed=seed),
        lambda: fit.posterior.sample(3, seed=seed),
        lambda: fit.predict(X).sample(3, seed=seed),
        lambda: fit.draw(X, 2, seed=seed),
        lambda: bll.loo(fit, (X, Y), num_rows=10, seed=seed),
        lambda: bll.QuasiMonteCarlo(64, seed),
        lambda: bll.prior_predictive(LAYER, X, Y, num_draws=2, seed=seed),
        lambda: bll.sbc(LAYER, bll.Exact(), X, num_simulations=10, num_draws=10, seed=seed, num_processes=1),
        lambda: bll.conformal.APS(seed),
    ):
        refused(call, "a whole number from 0 to", repr(seed))


@pytest.mark.parametrize("seed", [np.int64(3), 2**63 - 1])
def test_seeds_that_are_whole_numbers_of_any_kind(fit, seed):
    assert torch.equal(fit.draw(X, 2, seed=seed), fit.draw(X, 2, seed=int(seed)))
    bll.fit(LAYER, (X, Y), inference=QUICK, seed=seed)


@pytest.mark.parametrize("prob", [0, 1, 2, -1, "a", None])
def test_probabilities(fit, prob):
    stack = bll.Stack({"a": fit, "b": fit}, {"a": 0.5, "b": 0.5}).predict(X)
    for call in (
        lambda: fit.predict(X).interval(prob),
        lambda: fit.predict(X).quantile(prob),
        lambda: stack.interval(prob),
        lambda: stack.quantile(prob),
        lambda: bll.metrics.interval_score([0.0], [1.0], [0.5], prob),
        lambda: bll.conformal.conformal_quantile([1.0, 2.0], prob),
    ):
        refused(call, "a number", repr(prob))


@pytest.mark.parametrize("device", ["nonsense", "cpu:x", 3.5])
def test_devices(device):
    for call in (
        lambda: bll.fit(LAYER, (X, Y), inference=QUICK, device=device),
        lambda: bll.choose(TWO, (X, Y), inference=QUICK, device=device),
        lambda: bll.extract(NET, X, device=device),
    ):
        refused(call, "a device that torch has here", repr(device))


def test_a_store_is_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for call in (
        lambda: bll.fit(LAYER, (X, Y), NET, bll.Exact(), store=file),
        lambda: bll.choose(TWO, (X, Y), NET, bll.Exact(), store=file),
        lambda: bll.extract(NET, X, store=str(file)),
    ):
        refused(call, "a folder", "the file")
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


NOT_A_FIT = {
    "calibrate": lambda: bll.calibrate(NET, X, Y),
    "loo": lambda: bll.loo(NET, (X, Y)),
    "diagnose": lambda: bll.diagnose(NET, (X, Y)),
    "evaluate": lambda: bll.evaluate(NET, (X, Y), held_out=(X, Y), plain=NET),
    "Detector.calibrate": lambda: bll.ood.Detector().calibrate(NET, X),
    "PredictionIntervals.calibrate": lambda: bll.conformal.PredictionIntervals().calibrate(NET, X, Y),
    "Stack": lambda: bll.Stack({"a": NET}, {"a": 1.0}),
}


@pytest.mark.parametrize("owner", NOT_A_FIT)
def test_what_is_no_fit(owner):
    with pytest.raises(TypeError, match=f"{owner}: expected a fit, the result of bll.fit.*got Linear"):
        NOT_A_FIT[owner]()


def test_kinds_of_objects(fit, classes):
    refused(lambda: fit.predict(X, integration="sobol"), "bll.QuasiMonteCarlo", "'sobol'", TypeError)
    refused(lambda: bll.extract("resnet18", X), "a torch.nn.Module or None", "str", TypeError)
    refused(lambda: bll.extract(NET, X, dtype="float32"), "a floating-point type", "float32")
    refused(lambda: bll.Stack([fit], [1.0]), "fits and weights by name", "list", TypeError)
    refused(lambda: fit.to_datatree(X, Y, num_draws=2, outputs=0), "a list of names or positions", "0")
    refused(lambda: classes.to_datatree(X, LABELS, num_draws=2, class_names="ab"), "a list of names", "'ab'")
