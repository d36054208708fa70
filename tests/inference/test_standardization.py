"""The scale of the features: units of a table never matter, features of a network share one, constants are left out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.inference.standardization import Moments, common_scale, scale_by_column

L, P = bll.likelihoods, bll.priors
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 6))
X[:, 3] = RANDOM.random(150) < 0.1  # an indicator
X[:, 4] = np.where(RANDOM.random(150) < 0.03, RANDOM.normal(size=150), 2.0)  # nearly constant
X[:, 5] = 7.0
Y = X[:, 0] - 0.5 * X[:, 1] + 2 * X[:, 3] + 0.3 * RANDOM.normal(size=150)
NEW = X[:20] + 0.1 * RANDOM.normal(size=(20, 6))
SHORT = bll.SVI(num_epochs=100)


def by_hand(values: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The scale of one column, from the counts of its values."""
    weight = np.ones(len(values)) if weight is None else weight
    mean = np.average(values, weights=weight)
    deviation = np.average((values - mean) ** 2, weights=weight) ** 0.5
    most = max(weight[values == value].sum() for value in set(values.tolist()))
    return float(deviation / min(1.0, 2 * (1 - most / weight.sum())))


def scale_of(values: np.ndarray, weight: np.ndarray | None = None) -> float:
    rows = torch.tensor(values)[:, None]
    weights = None if weight is None else torch.tensor(weight)
    return float(scale_by_column(Moments.of(rows, weights), rows, weights))


@pytest.mark.parametrize("column", range(5))
def test_the_scale_of_a_column(column: int) -> None:
    assert scale_of(X[:, column]) == pytest.approx(by_hand(X[:, column]), rel=1e-12)
    weight = RANDOM.integers(0, 4, 150).astype(float)
    assert scale_of(X[:, column], weight) == pytest.approx(by_hand(X[:, column], weight), rel=1e-12)
    # a weight is so many equal rows
    repeated = np.repeat(X[:, column], weight.astype(int))
    assert scale_of(repeated) == pytest.approx(scale_of(X[:, column], weight), rel=1e-12)


def test_what_the_scale_means() -> None:
    assert scale_of(X[:, 0]) == pytest.approx(X[:, 0].std())  # no value twice: the standard deviation
    assert scale_of(np.array([0.0, 1.0] * 8)) == pytest.approx(0.5)
    rare = np.zeros(1000)
    rare[:10] = 1.0
    standardized = rare / scale_of(rare)
    assert standardized.std() == pytest.approx(0.02)  # 2p
    assert scale_of(np.full(9, 0.1)) == np.inf


def test_one_scale_for_all() -> None:
    rows = torch.tensor(X)
    expected = rows[:, :5].var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(common_scale(Moments.of(rows)), expected.expand(6))
    assert common_scale(Moments.of(rows[:, 5:])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("inference", "column"),
    [*((bll.Exact(), column) for column in (0, 3, 4, 5)), (SHORT, 3), (bll.Laplace(), 3)],
    ids=["0", "3", "4", "5", "SVI", "Laplace"],
)
@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_units_of_a_table_never_matter(inference: Any, column: int, unit: float) -> None:
    units = np.where(np.arange(6) == column, unit, 1.0)
    layer = bll.LastLayer(L.Gaussian())
    expected = bll.fit(layer, (X, Y), inference=inference).predict(NEW)
    found = bll.fit(layer, (X * units, Y), inference=inference).predict(NEW * units)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-5, atol=1e-6)


def test_units_of_a_table_of_float32_in_a_dataset() -> None:
    rows, labels = torch.tensor(X).float(), torch.tensor(Y > 0).long()
    layer, units = bll.LastLayer(L.Categorical(2)), torch.tensor([1e3, 1, 1e-3, 1e2, 1, 1])
    found = []
    for given in (rows, rows * units):
        data = torch.utils.data.StackDataset(given, labels)
        fit = bll.fit(layer, data, inference=SHORT)
        found.append(fit.predict(given).probs)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_the_default_looks_at_where_features_come_from() -> None:
    net = nn.Linear(6, 4)
    rows = torch.tensor(X).float()
    with torch.no_grad():
        features = net(rows)

    def kind(data: Any, backbone: Any = None, **options: Any) -> str:
        layer = bll.LastLayer(L.Gaussian(), **options)
        return bll.fit(layer, data, backbone, bll.Exact()).posterior.frame.feature_scale

    assert kind((X, Y)) == "columns"
    assert kind((rows, Y), net) == "common"
    assert kind((bll.Features.from_tensors(features), Y)) == "common"
    assert kind(bll.extract(net, (rows, Y))) == "common"
    assert kind((X, Y), standardize="common") == "common"
    assert kind((rows, Y), net, standardize="columns") == "columns"
    assert kind((X, Y), standardize=False) == "common"


def test_the_choice_is_saved(tmp_path: Any) -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian(), standardize="columns"), (X, Y), inference=bll.Exact())
    fit.save(tmp_path)
    loaded = bll.load(tmp_path)
    assert loaded.layer == fit.layer
    assert loaded.layer.standardize == "columns"
    assert torch.equal(loaded.predict(NEW).mean, fit.predict(NEW).mean)


@pytest.mark.parametrize("value", ["column", 1, None])
def test_other_choices_are_refused(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r'standardize=\.\.\.\): expected True, False, "columns" or "common", got'
    ):
        bll.LastLayer(L.Gaussian(), standardize=value)


def test_a_constant_column_is_left_out() -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (X, Y), inference=bll.Exact())
    moved = NEW.copy()
    moved[:, 5] += 1e6
    assert torch.equal(fit.predict(moved).mean, fit.predict(NEW).mean)
    without = bll.fit(bll.LastLayer(L.Gaussian()), (X[:, :5], Y), inference=bll.Exact())
    torch.testing.assert_close(without.predict(NEW[:, :5]).mean, fit.predict(NEW).mean, rtol=1e-6, atol=1e-8)


def test_noise_in_nearly_constant_columns_does_not_outweigh_all_others() -> None:
    """Digits as a table: pixels that move in few of the training rows, and in all of the noisy ones."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = RANDOM.permutation(len(pixels))
    pixels, labels = pixels[order] / 16, labels[order]
    noisy = pixels[1000:] + 0.3 * RANDOM.normal(size=pixels[1000:].shape)
    nll = {}
    for standardize in (True, "common"):
        layer = bll.LastLayer(L.Categorical(10), P.Normal(1.0), standardize=standardize)
        fit = bll.fit(layer, (pixels[:300].astype("float32"), labels[:300]), inference=SHORT)
        nll[standardize] = [
            -float(fit.predict(rows.astype("float32")).log_prob(labels[1000:]).mean())
            for rows in (pixels[1000:], noisy)
        ]
    assert nll[True][0] < nll["common"][0] + 0.05
    assert nll[True][1] < nll["common"][1] + 0.1
