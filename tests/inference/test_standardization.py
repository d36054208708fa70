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
    """The scale of one column, row by row."""
    weight = np.ones(len(values)) if weight is None else weight
    mean = np.average(values, weights=weight)
    deviation = np.average((values - mean) ** 2, weights=weight) ** 0.5
    order = np.argsort(values, kind="stable")
    median = values[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]
    counts = [min(1.0, (3 * (value - median) / deviation) ** 2) for value in values]
    return float(deviation / min(1.0, 2 * np.average(counts, weights=weight)))


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
    random = np.random.default_rng(3)
    for column in (X[:, 0], random.random(500), random.lognormal(size=500), random.integers(0, 5, 500) / 7):
        assert scale_of(column) == pytest.approx(
            column.std()
        )  # it moves in most rows: the standard deviation
    assert scale_of(np.array([0.0, 1.0] * 8)) == pytest.approx(0.5)
    rare = np.zeros(1000)
    rare[:10] = 1.0
    standardized = rare / scale_of(rare)
    assert standardized.std() == pytest.approx(0.02)  # 2p
    assert scale_of(np.full(9, 0.1)) == np.inf


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("noise", [1e-12, 1e-6, 1e-3])
def test_a_column_that_rests_near_a_value_is_one_that_rests_there(share: float, noise: float) -> None:
    """Noise on a sensor at rest is no movement: before, a column without equal values was scaled as if it always moved."""
    random = np.random.default_rng(4)
    resting = np.where(np.arange(2000) < 2000 * share, 1.0, 0.0)
    found = scale_of(resting + noise * random.normal(size=2000))
    # the noise counts for at most (3 noise / s)^2, where the share counts for itself
    assert found == pytest.approx(scale_of(resting), rel=9 * noise**2 / (share**2 * (1 - share)) + 1e-4)


def test_no_scale_jumps_with_the_number_of_rows() -> None:
    """Pixels in 80 to 1,200 rows: the scale is that of all rows up to the noise of so many, for rare ones too."""
    from sklearn.datasets import load_digits

    pixels = np.random.default_rng(5).permutation(load_digits().data) / 16
    whole = torch.tensor(pixels)
    expected = scale_by_column(Moments.of(whole), whole, None)
    moves = (pixels != np.median(pixels, axis=0)).mean(0)
    for num_rows in (80, 120, 200, 300, 450, 650, 900, 1200):
        part = torch.tensor(pixels[:num_rows])
        found = scale_by_column(Moments.of(part), part, None)
        seen = torch.tensor(moves * num_rows >= 20)  # rows in which a pixel moves, in the mean
        assert int(seen.sum()) > 35
        # s / p of n moving rows varies by about n^(-1/2), taken four times
        noise = 4 / torch.tensor(moves * num_rows).clamp_min(1).sqrt()
        assert bool(((found / expected).log().abs() <= noise)[seen].all())
        # what is hardly ever seen to move is never divided by a small number: by half a grey level at least
        assert bool((found > 0.5 / 16).all())


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
    # a search ends where half the squared distance is 1e-3, in posterior standard deviations of about .03: sooner or later
    near = 1e-3 if isinstance(inference, bll.SVI) else 1e-6
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=near)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-5, atol=near)


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


@pytest.mark.slow
def test_more_rows_predict_better_and_noise_does_little_harm() -> None:
    """Digits as a table, eight sizes: test NLL falls up to its noise, and stays near that with one scale for all."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(6).permutation(len(pixels))
    pixels, labels = (pixels[order] / 16).astype("float32"), labels[order]
    noise = np.random.default_rng(7).normal(size=pixels[1200:].shape).astype("float32")
    found: dict[Any, list[np.ndarray]] = {True: [], "common": []}
    for standardize, rows_of in found.items():
        for num_rows in (80, 120, 200, 300, 450, 650, 900, 1200):
            layer = bll.LastLayer(L.Categorical(10), standardize=standardize)
            fit = bll.fit(layer, (pixels[:num_rows], labels[:num_rows]), calibration=None)
            test = (pixels[1200:] + strength * noise for strength in (0.0, 0.3, 0.6))
            rows_of.append(np.stack([-np.asarray(fit.predict(x).log_prob(labels[1200:])) for x in test]))
    columns, common = np.array(found[True]), np.array(found["common"])  # [sizes, noises, rows]
    fewer, more = columns[:-1, 0], columns[1:, 0]
    assert bool(((more - fewer).mean(-1) <= 3 * (more - fewer).std(-1) / more.shape[-1] ** 0.5).all())
    assert bool((columns.mean(-1) < 1.1 * common.mean(-1)).all())


def test_a_column_given_twice_changes_little() -> None:
    """Two copies share the weight of one; their prior is that of a weight with twice the variance."""
    layer, twice = bll.LastLayer(L.Gaussian(), P.Normal(1.0)), np.concatenate([X, X[:, :1]], 1)
    fit = bll.fit(layer, (twice, Y), inference=bll.Exact())
    alone = bll.fit(layer, (X, Y), inference=bll.Exact())
    found, expected = fit.predict(np.concatenate([NEW, NEW[:, :1]], 1)), alone.predict(NEW)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0.0, atol=0.02)
    assert fit.posterior.frame.scale[6] == fit.posterior.frame.scale[0]


def test_what_was_done_is_printed() -> None:
    def said(rows: np.ndarray, **options: Any) -> str:
        return str(bll.fit(bll.LastLayer(L.Gaussian(), **options), (rows, Y), inference=bll.Exact()))

    assert "one for each feature; 1 constant in the training rows, left out" in said(X)
    assert "one for each feature\n" in said(X[:, :5])
    assert "one for all features\n" in said(X, standardize="common")
    assert "features as they are\n" in said(X, standardize=False)
