"""Inputs that users reported as failing, or answered wrongly, in this library or in its peers, with the right values."""

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import scipy.sparse
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro.scope import isolated

L = bll.likelihoods
pytestmark = pytest.mark.unchecked  # wrong types reach the library's own messages


@pytest.fixture
def r() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x(r: np.random.Generator) -> np.ndarray:
    return r.normal(size=(200, 2)).astype("float32")


@pytest.fixture
def y(x: np.ndarray, r: np.random.Generator) -> np.ndarray:
    return (x[:, 0] + 0.3 * r.normal(size=200)).astype("float32")


@pytest.fixture
def net() -> nn.Module:
    with isolated(0):
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).train()


def test_an_error_of_predict_that_is_kept_changes_nothing(
    x: np.ndarray, y: np.ndarray, net: nn.Module
) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), backbone=net, inference=bll.Exact())
    pyro.param("mine", torch.tensor(1.0))
    bad = x.copy()
    bad[0] = np.nan
    kept = None
    try:
        fit.predict(bad)
    except ValueError as error:
        kept = error
    assert kept is not None
    state = torch.is_grad_enabled(), net.training, list(pyro.get_param_store().keys())
    assert state == (True, True, ["mine"])
    bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.SVI(num_epochs=5))
    pyro.clear_param_store()


def test_predictions_from_threads(x: np.ndarray, y: np.ndarray, net: nn.Module) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), backbone=net, inference=bll.Exact())
    expected: Any = fit.predict(x)
    with ThreadPoolExecutor(4) as pool:
        found: list[Any] = list(pool.map(lambda _: fit.predict(x), range(60)))
    assert all(torch.equal(each.mean, expected.mean) for each in found)
    assert net.training


def test_two_fits_by_pyros_own_elbo_at_once(x: np.ndarray, y: np.ndarray) -> None:
    def weights(seed: int) -> Tensor:
        inference = bll.SVI(output_space=False, num_epochs=3)
        return bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=inference, seed=seed).posterior.sample(
            3
        )["weight"]

    expected = [weights(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(weights, range(2)))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_two_threads_save_to_one_folder(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    fits = [bll.fit(bll.LastLayer(L.Gaussian(noise)), (x, y), inference=bll.Exact()) for noise in (0.3, 0.6)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: fits[index % 2].save(tmp_path / "m"), range(50)))
    assert bll.load(tmp_path / "m").num_rows == 200


def within(prediction: Any, targets: np.ndarray) -> float:
    low, high = prediction.interval(0.9)
    return float(np.mean((low.numpy() <= targets) & (targets <= high.numpy())))


def test_targets_far_from_0(x: np.ndarray, r: np.random.Generator) -> None:
    y = 1.7e9 + 5 * x[:, 0].astype(float) + 0.1 * r.normal(size=200)
    prediction: Any = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.Exact()).predict(x)
    assert math.sqrt(np.mean((prediction.mean.numpy() - y) ** 2)) < 0.12
    assert abs(within(prediction, y) - 0.9) < 3 * math.sqrt(0.09 / 200)
    low, high = prediction.interval(0.9)
    assert float((high - low).mean()) == pytest.approx(2 * 1.645 * 0.1, rel=0.15)
    assert float(prediction.log_prob(y).mean()) == pytest.approx(
        stats.norm(0, 0.1).logpdf(r.normal(size=9999) * 0.1).mean(), abs=0.2
    )


def test_integers_of_the_size_of_unix_seconds(r: np.random.Generator) -> None:
    seconds = (1.7e9 + 1e3 * r.normal(size=(200, 2))).astype(np.int64)
    y = (seconds[:, 0] - 1.7e9) / 1e3 + 0.01 * r.normal(size=200)
    small = bll.fit(bll.LastLayer(L.Gaussian()), (seconds - 1_700_000_000, y), inference=bll.Exact())
    large = bll.fit(bll.LastLayer(L.Gaussian()), (seconds, y), inference=bll.Exact())
    found: Any = large.predict(seconds)
    expected: Any = small.predict(seconds - 1_700_000_000)
    assert math.sqrt(np.mean((found.mean.numpy() - y) ** 2)) < 0.012
    torch.testing.assert_close(found.mean.double(), expected.mean.double(), rtol=1e-5, atol=1e-5)
    targets = (seconds[:, 0] + r.normal(size=200) * 10).astype(np.int64)
    prediction: Any = bll.fit(bll.LastLayer(L.Gaussian()), (seconds, targets), inference=bll.Exact()).predict(
        seconds
    )
    assert math.sqrt(np.mean((prediction.mean.numpy() - targets) ** 2)) < 12


def test_features_of_a_network_in_double_precision(r: np.random.Generator) -> None:
    inputs = r.normal(size=(200, 2)) + 1e6
    y = inputs[:, 0] - 1e6 + 0.01 * r.normal(size=200)
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (inputs, y), nn.Identity().double(), bll.Exact())
    prediction: Any = fit.predict(inputs)
    assert math.sqrt(np.mean((prediction.mean.numpy() - y) ** 2)) < 0.012
    assert bll.extract(nn.Linear(2, 2).double(), inputs).dtype == torch.float64


@pytest.mark.parametrize("call", ["calibrate", "intervals", "tree", "evaluate", "log_prob"])
def test_targets_beside_a_loader_that_shuffles(call: str, x: np.ndarray, y: np.ndarray) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.Exact())
    loader = DataLoader(TensorDataset(torch.from_numpy(x)), 16, shuffle=True)
    calls = {
        "calibrate": lambda: bll.calibrate(fit, loader, y),
        "intervals": lambda: bll.conformal.PredictionIntervals().calibrate(fit, loader, y),
        "tree": lambda: fit.to_datatree(loader, y),
        "evaluate": lambda: bll.evaluate(fit, loader, y, held_out=(x, y), train=(x, y)),
        "log_prob": lambda: fit.predict(loader).log_prob(y),
    }
    with pytest.raises(ValueError, match=r"expected .*order.*shuffle"):
        calls[call]()


def test_targets_as_a_series_through_every_door(x: np.ndarray, y: np.ndarray) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, pd.Series(y)), inference=bll.Exact())
    prediction: Any = fit.predict(x[150:])
    late, plain = pd.Series(y)[150:], y[150:]
    for name in ("log_prob", "crps", "pit", "cdf"):
        assert torch.equal(getattr(prediction, name)(late), getattr(prediction, name)(plain)), name
    found = bll.calibrate(fit, x[150:], late).recalibration
    assert found == bll.calibrate(fit, x[150:], plain).recalibration
    intervals = bll.conformal.PredictionIntervals()
    assert (
        intervals.calibrate(fit, x[150:], late).threshold
        == intervals.calibrate(fit, x[150:], plain).threshold
    )
    bll.evaluate(fit, x[150:], late, held_out=(x[:150], pd.Series(y)[:150]), plain=fit)


def test_numbers_of_numpy() -> None:
    assert L.Categorical(np.array([0, 2]).max() + 1) == L.Categorical(3)
    assert bll.SVI(num_epochs=np.int64(3)) == bll.SVI(num_epochs=3)
    assert bll.NUTS(num_samples=np.int64(50)) == bll.NUTS(num_samples=50)
    assert bll.SVI(learning_rate=np.float32(0.5)) == bll.SVI(learning_rate=0.5)
    assert bll.priors.Normal(np.float32(0.5)) == bll.priors.Normal(0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of a chain that is short
@pytest.mark.parametrize(
    "inference",
    [bll.Laplace(), bll.NUTS(num_chains=1, num_warmup=100, num_samples=100)],
    ids=["Laplace", "NUTS"],
)
def test_large_counts_with_more_variance(
    inference: bll.Laplace, x: np.ndarray, r: np.random.Generator
) -> None:
    y = r.negative_binomial(5, 5 / (5 + 5000 * np.exp(0.3 * x[:, 0])))
    prediction: Any = bll.fit(bll.LastLayer(L.NegativeBinomial()), (x, y), inference=inference).predict(x)
    assert float(prediction.mean.sum()) / y.sum() == pytest.approx(1, abs=0.02)


def test_counts_of_1e7(x: np.ndarray, r: np.random.Generator) -> None:
    y = r.poisson(1e7 * np.exp(0.3 * x[:, 0]))
    prediction: Any = bll.fit(bll.LastLayer(L.Poisson()), (x, y)).predict(x)
    assert float(prediction.mean.sum()) / y.sum() == pytest.approx(1, abs=1e-3)


def test_constant_targets_are_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="constant"):
        bll.fit(bll.LastLayer(L.Gaussian()), (x, np.full(200, 3.0)), inference=bll.Exact())


def test_crps_of_large_counts(x: np.ndarray, r: np.random.Generator) -> None:
    y = r.poisson(1e5 * np.exp(0.1 * x[:50, 0]))
    prediction: Any = bll.fit(bll.LastLayer(L.Poisson()), (x[:50], y), inference=bll.Laplace()).predict(
        x[:50]
    )
    # far from 0 a Poisson distribution is Normal; its CRPS in closed form
    expected = bll.metrics.crps_normal(prediction.mean.numpy(), prediction.scale.numpy(), y)
    assert float(prediction.crps(y).mean()) == pytest.approx(float(np.mean(expected)), rel=1e-3)


@pytest.mark.filterwarnings("ignore:no rows were kept:RuntimeWarning")
def test_a_last_row_by_itself_and_batch_norm(r: np.random.Generator) -> None:
    inputs = r.normal(size=(129, 2)).astype("float32")
    targets = (inputs[:, 0] > 0).astype(int)
    with isolated(0):
        backbone = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    inference = bll.SVI(backbone_learning_rate=1e-3, batch_size=128, num_epochs=2, final_stage=False)
    layer = bll.LastLayer(L.Categorical(2))
    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
    for rows in ((inputs, targets), DataLoader(data, 64, shuffle=True, drop_last=True)):
        assert bll.fit(layer, rows, backbone, inference, calibration=None).num_rows == 129
    wide = bll.fit(layer, (inputs, targets), backbone.double(), inference, calibration=None)
    assert wide.num_rows == 129
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are deprecated
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="script"):
        bll.fit(layer, (inputs, targets), scripted, inference)


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"calls": object()}


def test_what_cannot_be_saved_leaves_nothing(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), WithExtraState(2, 2), bll.Exact())
    with pytest.raises((ValueError, TypeError), match="expected"):
        fit.save(tmp_path / "m")
    assert not (tmp_path / "m").exists() or not list((tmp_path / "m").iterdir())
    fit.head.save(tmp_path / "m")
    assert bll.load(tmp_path / "m").num_rows == 200


def test_user_paths(x: np.ndarray, y: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.Exact())
    fit.save("~/m")
    assert bll.load(tmp_path / "m").num_rows == 200
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    stored = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), nn.Identity(), bll.Exact(), store="features")
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored.predict(x)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.filterwarnings("ignore:.*torch.jit|.*TorchScript:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
def test_wrappers_leave_no_trace_in_a_saved_fit(
    wrap: Any, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    with isolated(0):
        plain, other = nn.Linear(2, 3), nn.Linear(2, 3)
    wrapped = wrap(plain, backend="eager") if wrap is torch.compile else wrap(plain)
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), wrapped, bll.Exact())
    fit.save(tmp_path / "m")
    loaded: Any = bll.load(tmp_path / "m", backbone=other)
    expected: Any = fit.predict(x)
    torch.testing.assert_close(loaded.predict(x).mean, expected.mean)


def test_weights_in_calibrate_are_used(x: np.ndarray, y: np.ndarray) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian(0.5)), (x, y), inference=bll.Exact())
    weight = np.r_[np.full(100, 2.0), np.zeros(100)]
    found = bll.calibrate(fit, bll.Data((x, y), sample_weight=weight)).recalibration
    doubled = np.r_[0:100, 0:100]
    assert found.factor == pytest.approx(
        bll.calibrate(fit, x[doubled], y[doubled]).recalibration.factor, rel=1e-4
    )  # type: ignore[union-attr]


def test_a_network_that_is_trained_on_is_noticed(x: np.ndarray, y: np.ndarray, net: nn.Module) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), net, bll.Exact())
    with torch.no_grad():
        net[0].weight.add_(1.0)  # type: ignore[union-attr, operator]
    with pytest.warns(RuntimeWarning, match="backbone was changed"):
        fit.predict(x)


def test_targets_that_broadcast_in_a_program() -> None:
    inputs, targets = torch.randn(60, 2), torch.randn(60, 1)

    def model(inputs: Tensor, targets: Tensor | None = None) -> None:
        weight = pyro.sample("w", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(inputs)):
            pyro.sample("y", pyro.distributions.Normal(inputs @ weight, 1.0), obs=targets)

    draws = {"w": torch.randn(1, 10, 2)}
    with pytest.raises(ValueError, match="expected"):
        bll.from_pyro(model, draws, args=(inputs, targets))


@pytest.mark.parametrize("name", ["Gaussian", "Bernoulli", "Poisson", "Categorical"])
def test_both_shapes_of_targets_mean_the_same_to_the_program(name: str) -> None:
    features, base = torch.randn(150, 4), torch.randn(150)
    likelihood, y = {
        "Gaussian": (L.Gaussian(1.0), features[:, 0] + base),
        "Bernoulli": (L.Bernoulli(), (base > 0).float()),
        "Poisson": (L.Poisson(), base.abs().round()),
        "Categorical": (L.Categorical(3), base.abs().long().clamp_max(2)),
    }[name]
    model = bll.Model(bll.LastLayer(likelihood, bll.priors.Normal(1.0)), 4)
    found = []
    for targets in (y, y[:, None]):
        pyro.set_rng_seed(1)
        site = pyro.poutine.trace(model).get_trace(features, targets).nodes["y"]
        found.append(float(site["fn"].log_prob(site["value"]).sum()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_units_of_a_table_do_not_matter(r: np.random.Generator) -> None:
    inputs = r.normal(size=(60, 20))
    y = inputs[:, 0] - inputs[:, 1] + 0.5 * r.normal(size=60)
    units = np.ones(20)
    units[:2] = 1e-3, 1e3
    layer = bll.LastLayer(L.Gaussian())
    one: Any = bll.fit(layer, (inputs, y), inference=bll.Exact()).predict(inputs)
    other: Any = bll.fit(layer, (inputs * units, y), inference=bll.Exact()).predict(inputs * units)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-4)


def test_a_fit_and_a_prediction_print_as_a_few_lines(x: np.ndarray, y: np.ndarray) -> None:
    wide = np.tile(x, (2, 5))
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (wide, np.tile(y, 2)), inference=bll.Exact())
    for result in (fit, fit.predict(wide)):
        assert len(repr(result).splitlines()) <= 15
        assert len(repr(result)) < 2000
        assert "<" in result._repr_html_()  # type: ignore[attr-defined]


def test_the_same_forms_everywhere(x: np.ndarray, y: np.ndarray) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.Exact())
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    assert bll.calibrate(fit, data).recalibration == bll.calibrate(fit, x, y).recalibration
    sparse: Any = bll.fit(bll.LastLayer(L.Gaussian()), (scipy.sparse.csr_matrix(x), y), inference=bll.Exact())
    expected: Any = fit.predict(x)
    assert torch.equal(sparse.predict(x).mean, expected.mean)
    drawn = fit.draw(x, 4000)
    error = 4 * drawn.std(0) / math.sqrt(4000)
    assert bool(((drawn.mean(0) - expected.mean).abs() < error).all())


@pytest.mark.slow
def test_a_layer_of_a_flow_is_a_guide(x: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few steps
        fit = bll.fit(
            bll.LastLayer(L.Gaussian()), (x, y), inference=bll.SVI(bll.guides.Spline(), num_epochs=2)
        )
    assert fit.num_rows == 200


def test_messages(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (x, y), inference=bll.Exact())
    with pytest.raises(ValueError, match="batch_size"):
        fit.predict(x, batch_size=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        bll.fit(bll.LastLayer(L.Gaussian()), (x, y), nn.Identity(), bll.Exact(), store=tmp_path / "file")
    items = [{"input_ids": torch.ones(2), "labels": torch.tensor(1)}] * 4
    with pytest.raises((ValueError, TypeError), match=r"labels|\(x, y\)"):
        bll.fit(bll.LastLayer(L.Categorical(2)), DataLoader(items, 2))  # type: ignore[arg-type]
    assert bll.calibrate(fit, (x, y)).recalibration is not None
