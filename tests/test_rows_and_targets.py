"""One way in for rows and targets: every function takes the same forms, and what cannot be matched or used is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bll_pyro as bll

L = bll.likelihoods
N = 120
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 2)).astype("float32")
Y = (1e3 + X @ [1.0, -2.0] + 0.3 * RANDOM.normal(size=N)).astype("float32")
LABELS = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)
COUNTS = RANDOM.poisson(3, size=N)
WEIGHT = RANDOM.integers(0, 4, size=N)
EXPOSURE = RANDOM.uniform(0.5, 2, size=N).astype("float32")
REPEATED = np.repeat(np.arange(N), WEIGHT)


class Items(Dataset):
    """Pairs, one at a time; a list of rows that is no TensorDataset."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        row = tuple(column[index] for column in self.columns)
        return row if len(row) > 1 else row[0]


@pytest.fixture(scope="module")
def regression():
    return bll.fit(bll.LastLayer(L.Gaussian()), (X, Y), inference=bll.Exact())


@pytest.fixture(scope="module")
def classes():
    return bll.fit(bll.LastLayer(L.Categorical(3)), (X, LABELS), inference=bll.SVI(num_epochs=20))


@pytest.fixture(scope="module")
def counts():
    layer = bll.LastLayer(L.Poisson(), bll.priors.Normal(1.0))
    return bll.fit(layer, bll.Data((X, COUNTS), exposure=EXPOSURE), inference=bll.Laplace())


def forms(inputs, targets):
    """The same rows in every form, as the arguments of a call."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return {
        "two arrays": (inputs, targets),
        "pair": ((inputs, targets),),
        "tensors": ((x, y),),
        "lists": (inputs.tolist(), targets.tolist()),
        "frame and series": (pd.DataFrame(inputs), pd.Series(targets, index=np.arange(N)[::-1])),
        "dataset of tensors": (TensorDataset(x, y),),
        "dataset": (Items(inputs, targets),),
        "loader": (DataLoader(Items(inputs, targets), 32),),
        "loader that shuffles pairs": (DataLoader(TensorDataset(x, y), 32, shuffle=True),),
        "features": (bll.Features.from_tensors(x, y),),
        "data": (bll.Data((inputs, targets)),),
        "dataset and targets": (Items(inputs), targets),
        "loader and targets": (DataLoader(TensorDataset(x), 32), targets),
        "features and targets": (bll.Features.from_tensors(x), targets),
        "data and targets": (bll.Data(inputs), targets),
        "data of a loader and targets": (bll.Data(DataLoader(Items(inputs, -targets), 32)), targets),
    }


FORMS = list(forms(X, Y))


def exact(fit, *rows):
    return bll.calibrate(fit, *rows).recalibration.factor


def intervals(fit, *rows):
    return bll.conformal.PredictionIntervals().calibrate(fit, *rows).threshold[0]


def evaluated(fit, *rows):
    found = bll.evaluate(fit, *rows, held_out=(X, Y), plain=fit).scores["Bayesian, calibrated"]
    return [found[name] for name in ("NLL", "RMSE", "coverage", "width")]


def in_tree(fit, *rows):
    tree = fit.to_datatree(*rows, num_draws=5, prior=False)
    return [float(tree["log_likelihood"]["y"].sum()), float(tree["observed_data"]["y"].sum())]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", [exact, intervals, evaluated, in_tree])
@pytest.mark.thinned(3)
def test_all_forms_of_rows_and_targets_mean_the_same(regression, call, form):
    np.testing.assert_allclose(
        call(regression, *forms(X, Y)[form]), call(regression, X, Y), rtol=2e-4, err_msg=form
    )


@pytest.mark.parametrize("form", [form for form in FORMS if "targets" not in form and form != "two arrays"])
@pytest.mark.thinned(2)
def test_functions_of_one_argument_take_all_forms(regression, form):
    rows = forms(X, Y)[form]
    if len(rows) == 2:  # a frame and a series
        rows = (rows,)
    assert bll.loo(regression, *rows).elpd == pytest.approx(bll.loo(regression, (X, Y)).elpd, rel=1e-5)
    updated = regression.update(*rows).log_evidence
    assert updated == pytest.approx(regression.update((X, Y)).log_evidence, rel=1e-4)


def test_diagnose_takes_targets_beside_a_loader(regression):
    loader = DataLoader(Items(X), 32)
    found = bll.diagnose(regression, loader, Y, num_draws=100)
    assert found.verdict == bll.diagnose(regression, (X, Y), num_draws=100).verdict


def test_sets_take_all_forms(classes):
    sets = bll.conformal.PredictionSets(alpha=0.2)
    expected = sets.calibrate(classes, X, LABELS).threshold
    for form, rows in forms(X, LABELS).items():
        assert sets.calibrate(classes, *rows).threshold == pytest.approx(expected), form
    found = bll.calibrate(classes, Items(X, LABELS)).recalibration
    assert found == bll.calibrate(classes, X, LABELS).recalibration


SHUFFLED = {
    "calibrate": lambda fit, rows, y: bll.calibrate(fit, rows, y),
    "intervals": lambda fit, rows, y: bll.conformal.PredictionIntervals().calibrate(fit, rows, y),
    "tree": lambda fit, rows, y: fit.to_datatree(rows, y),
    "evaluate": lambda fit, rows, y: bll.evaluate(fit, rows, y, held_out=(X, Y), plain=fit),
    "held out": lambda fit, rows, y: bll.evaluate(fit, X, Y, held_out=(rows, y), plain=fit),
    "diagnose": lambda fit, rows, y: bll.diagnose(fit, rows, y),
    "loo": lambda fit, rows, y: bll.loo(fit, (rows, y)),
    "fit": lambda fit, rows, y: bll.fit(fit.layer, (rows, y)),
    "log_prob": lambda fit, rows, y: fit.predict(rows).log_prob(y),
    "crps": lambda fit, rows, y: fit.predict(rows).crps(y),
    "pit": lambda fit, rows, y: fit.predict(rows).pit(y),
    "cdf": lambda fit, rows, y: fit.predict(rows).cdf(y),
    "plot": lambda fit, rows, y: bll.plots.pit_histogram(fit.predict(rows), y),
    "stack": lambda fit, rows, y: bll.Stack({"a": fit, "b": fit}, {"a": 0.5, "b": 0.5}).predict(rows),
}


@pytest.mark.parametrize("case", SHUFFLED)
def test_targets_beside_a_loader_that_shuffles_are_refused(regression, case):
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), 16, shuffle=True)
    with pytest.raises(ValueError, match=r"in a fixed order.*DataLoader that\s+shuffles"):
        SHUFFLED[case](regression, loader, Y)


@pytest.mark.parametrize("on_disk", [False, True])
def test_features_of_a_loader_that_shuffles_keep_their_targets_and_take_no_others(
    regression, on_disk, tmp_path
):
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    features = bll.extract(nn.Identity(), loader, store=tmp_path if on_disk else None)
    assert exact(regression, features) == pytest.approx(exact(regression, X, Y), rel=5e-4)
    for call in (
        lambda: bll.calibrate(regression, features, Y),
        lambda: regression.predict(features).log_prob(Y),
        lambda: bll.calibrate(regression, bll.Data(features, WEIGHT)),
        lambda: features.with_targets(Y),
    ):
        with pytest.raises(ValueError, match=r"in a fixed order.*DataLoader that\s+shuffles"):
            call()


def test_a_network_in_between_changes_nothing(regression):
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.eye(2))
        network.bias.zero_()
    fit = bll.fit(regression.layer, (X, Y), backbone=network, inference=bll.Exact())
    assert exact(fit, Items(X, Y)) == pytest.approx(exact(regression, X, Y), rel=1e-4)
    with pytest.raises(ValueError, match="expected inputs and targets, got inputs alone"):
        bll.calibrate(fit, X)


def odd(values):
    """The same numbers in every kind of array."""
    frozen = values.copy()
    frozen.flags.writeable = False
    return {
        "Series": pd.Series(values, index=np.arange(len(values))[::-1]),
        "nullable": pd.Series(values, dtype="Int64" if values.dtype.kind == "i" else "Float64"),
        "frame": pd.DataFrame({"y": values}),
        "DataArray": xr.DataArray(values, dims="row"),
        "list": values.tolist(),
        "tuple of floats": tuple(values.tolist()),
        "read-only": frozen,
        "reversed": values[::-1].copy()[::-1],
        "big-endian": values.astype(values.dtype.newbyteorder(">")),
        "tensor with gradient": torch.from_numpy(values.astype(float)).requires_grad_(),
    }


@pytest.mark.parametrize("kind", odd(Y))
def test_targets_come_in_through_one_door(regression, counts, kind):
    """As the targets of predictions, and of metrics."""
    predicted, y = regression.predict(X), odd(Y)[kind]
    torch.testing.assert_close(predicted.log_prob(y), predicted.log_prob(Y))
    torch.testing.assert_close(predicted.crps(y), predicted.crps(Y))
    torch.testing.assert_close(predicted.pit(y), predicted.pit(Y))
    assert exact(regression, X, y) == pytest.approx(exact(regression, X, Y))
    n = odd(COUNTS)[kind]
    of_counts = counts.predict(X, exposure=odd(EXPOSURE)[kind])
    torch.testing.assert_close(of_counts.log_prob(n), counts.predict(X, exposure=EXPOSURE).log_prob(COUNTS))
    if kind not in ("frame", "tuple of floats"):
        torch.testing.assert_close(predicted.cdf(y), predicted.cdf(Y))
        assert bll.metrics.rmse(predicted.mean, y) == pytest.approx(bll.metrics.rmse(predicted.mean, Y))


def test_a_single_number_is_one_value_for_all_rows(regression):
    predicted = regression.predict(X)
    for value in (1e3, np.float32(1e3), np.array(1e3), torch.tensor(1e3)):
        torch.testing.assert_close(predicted.cdf(value), predicted.cdf(torch.full((N,), 1e3)))


def test_weights_are_repeated_rows_in_calibrate(regression, classes):
    weighted = bll.Data((X, Y + 0.5), WEIGHT)
    assert exact(regression, weighted) == pytest.approx(
        exact(regression, X[REPEATED], Y[REPEATED] + 0.5), rel=1e-4
    )
    found = bll.calibrate(classes, bll.Data(X, WEIGHT), LABELS).recalibration.temperature
    repeated = bll.calibrate(classes, X[REPEATED], LABELS[REPEATED]).recalibration.temperature
    assert found == pytest.approx(repeated, rel=1e-4)
    assert found != pytest.approx(bll.calibrate(classes, X, LABELS).recalibration.temperature, rel=1e-3)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_weights_are_repeated_rows_in_evaluate(request, kind):
    fit = request.getfixturevalue({"numbers": "regression", "classes": "classes"}[kind])
    y = Y if kind == "numbers" else LABELS
    unknown = 3 * X
    options = {"held_out": (X, y), "plain": fit, "unknown": unknown}
    found = bll.evaluate(fit, bll.Data((X, y), WEIGHT), **options).scores
    expected = bll.evaluate(fit, X[REPEATED], y[REPEATED], **options).scores
    for head, scores in expected.items():
        assert found[head] == pytest.approx(scores, rel=1e-5), head


def test_exposures_are_used_wherever_counts_are_predicted(counts):
    data = bll.Data((X, COUNTS), exposure=EXPOSURE)
    predicted = counts.predict(X, exposure=EXPOSURE)
    found = bll.evaluate(counts, data, held_out=data, plain=counts).scores["Bayesian"]
    assert found["NLL"] == pytest.approx(-float(predicted.log_prob(COUNTS).mean()), rel=1e-5)
    scores = np.abs(COUNTS - predicted.mean.numpy()) / predicted.scale.numpy()
    threshold = bll.conformal.PredictionIntervals().calibrate(counts, data).threshold
    assert threshold[0] == pytest.approx(bll.conformal.conformal_quantile(scores, 0.1), rel=1e-5)


def test_weights_without_a_meaning_are_refused(regression, classes):
    weighted = bll.Data((X, Y), WEIGHT)
    with pytest.raises(
        ValueError, match=r"PredictionIntervals.calibrate: expected rows without sample_weight"
    ):
        bll.conformal.PredictionIntervals().calibrate(regression, weighted)
    with pytest.raises(ValueError, match=r"PredictionSets.calibrate: expected rows without sample_weight"):
        bll.conformal.PredictionSets().calibrate(classes, bll.Data((X, LABELS), WEIGHT))
    with pytest.raises(ValueError, match=r"Detector: expected rows without sample_weight"):
        bll.ood.Detector().calibrate(regression, weighted)
    with pytest.raises(ValueError, match=r"train=...\): expected rows without sample_weight"):
        bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(classes, X, train=bll.Data((X, LABELS), WEIGHT))
    with pytest.raises(ValueError, match=r"extract: expected rows without sample_weight"):
        bll.extract(nn.Identity(), weighted)
    with pytest.raises(ValueError, match=r"sbc: expected rows without exposure"):
        bll.sbc(regression.layer, bll.Exact(), bll.Data(X, exposure=EXPOSURE))
    fits = {"a": regression, "b": regression}
    with pytest.raises(ValueError, match=r"compare\(new_data=...\): expected rows without sample_weight"):
        bll.compare(fits, (X, Y), new_data=weighted)


def test_dictionaries_as_items_are_told_to_become_pairs(regression):
    items = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    class Dictionaries(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return items[index]

    for call in (
        lambda: bll.fit(regression.layer, Dictionaries(), nn.Linear(2, 2)),
        lambda: bll.calibrate(regression, DataLoader(Dictionaries(), 8)),
    ):
        with pytest.raises(ValueError, match=r"'input_ids', 'labels'.*item.pop\('labels'\)"):
            call()


def test_targets_in_two_places_are_refused(regression):
    with pytest.raises(ValueError, match="expected targets in one place"):
        bll.calibrate(regression, (X, Y), Y)
