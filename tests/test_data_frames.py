"""Data frames through the front doors: columns by name, names in what comes out, and frames of the library that came in."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.plots.weights import strongest

RANDOM = np.random.default_rng(0)
NAMES = ["age", "income", "size"]
X = RANDOM.normal(size=(90, 3))
VALUES = X @ [1.0, -2.0, 0.5] + 0.3 * RANDOM.normal(size=90)
CLASSES = (VALUES > -1).astype(int) + (VALUES > 1)
PERMUTED = ["size", "age", "income"]
INDEX = pd.Index([f"row {i}" for i in range(90)], name="key")
LIBRARIES: dict[str, Any] = {
    "pandas": lambda columns: pd.DataFrame(columns, index=INDEX[: len(next(iter(columns.values())))]),
    "polars": pl.DataFrame,
    "pyarrow": pa.table,
}
PARTS = ["total", "aleatoric", "epistemic"]


def frame_of(library: str, names: list[str] = NAMES, rows: slice = slice(None)) -> Any:
    return LIBRARIES[library]({name: X[rows, NAMES.index(name)] for name in names})


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    return bll.fit(layer, (frame_of("pandas"), pd.Series(VALUES)), inference=bll.Exact())


@pytest.fixture(scope="module")
def of_classes() -> bll.Fit:
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return bll.fit(layer, (frame_of("polars"), pl.Series(CLASSES)), inference=bll.Laplace())


@pytest.fixture(scope="module")
def on_arrays() -> bll.Fit:
    return bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (X, VALUES), inference=bll.Exact())


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_goes_in_and_comes_out(library: str, on_arrays: bll.Fit) -> None:
    frame = frame_of(library)
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (frame, VALUES), inference=bll.Exact())
    expected = on_arrays.predict(X)
    assert fit.feature_names == tuple(NAMES)
    for given in (frame, frame_of(library, PERMUTED), X):
        assert torch.equal(fit.predict(given).mean, expected.mean)
    made = fit.predict(frame_of(library, PERMUTED)).to_frame()
    assert type(made) is type(frame)
    columns = {name: np.asarray(made[name]) for name in ("mean", "scale", "lower", "upper", *PARTS)}
    np.testing.assert_array_equal(columns["mean"], expected.mean.numpy())
    np.testing.assert_allclose(columns["upper"], expected.interval(0.9)[1])
    if library == "pandas":
        assert made.index.equals(INDEX)
    as_pandas = fit.predict(frame).to_pandas(prob=0.5)
    assert isinstance(as_pandas, pd.DataFrame)
    assert as_pandas.index.equals(INDEX if library == "pandas" else pd.RangeIndex(90))
    np.testing.assert_allclose(as_pandas["lower"], expected.interval(0.5)[0])


def test_without_a_frame_pandas_comes_out(fit: bll.Fit) -> None:
    assert fit.predict(X[:2]).to_frame().equals(fit.predict(X[:2]).to_pandas())


def test_targets_by_the_name_of_their_column(on_arrays: bll.Fit) -> None:
    frame = frame_of("polars").with_columns(price=pl.Series(VALUES))
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (frame, "price"), inference=bll.Exact())
    assert fit.feature_names == tuple(NAMES)
    assert torch.equal(fit.predict(frame.drop("price")).mean, on_arrays.predict(X).mean)
    assert torch.equal(fit.rows(frame, "price").given, torch.from_numpy(VALUES))
    with pytest.raises(ValueError, match=r"inputs: .*got price beside them; drop them: frame\[list"):
        fit.predict(frame)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "missing": (
        lambda f: f.drop(columns="size"),
        ValueError,
        r"inputs: .*none named size among age, income; add or rename",
    ),
    "other": (lambda f: f.assign(height=1.0), ValueError, r"inputs: .*got height beside them; drop them"),
    "twice": (
        lambda f: f[["age", "age", "size"]],
        ValueError,
        r"inputs.*different names, got age more than once",
    ),
    "text": (lambda f: f.assign(age="old"), TypeError, r"inputs.*got age \(String\).*OneHotEncoder"),
    "gaps": (
        lambda f: f.assign(age=np.nan),
        ValueError,
        r"inputs.*missing values, got some in age \(90 of.*SimpleImputer",
    ),
    "infinite": (lambda f: f.assign(age=np.inf), ValueError, r"inputs: expected finite values"),
    "width": (
        lambda f: f[["age"]].to_numpy(),
        ValueError,
        r"inputs: expected features of shape \[N, 3\], got \[90, 1\]",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_columns_are_named(kind: str, fit: bll.Fit) -> None:
    spoil, error, message = WRONG[kind]
    for call in (fit.predict, fit.features, fit.draw, lambda rows: fit.rows(rows, VALUES)):
        with pytest.raises(error, match=message):
            call(spoil(frame_of("pandas")))


def test_columns_go_into_order_wherever_rows_are_read(fit: bll.Fit, of_classes: bll.Fit) -> None:
    frame, permuted = frame_of("polars"), frame_of("polars", PERMUTED)
    assert torch.equal(fit.draw(permuted, 3), fit.draw(X, 3))
    assert torch.equal(fit.features(permuted).tensor(), torch.from_numpy(X))
    assert torch.equal(
        fit.update((permuted, VALUES)).predict(X).mean, fit.update((X, VALUES)).predict(X).mean
    )
    loo = [bll.loo(fit, (rows, VALUES)).elpd for rows in (permuted, X)]
    assert loo[0] == loo[1]
    calibrated = [bll.calibrate(of_classes, rows, CLASSES) for rows in (permuted, X)]
    assert calibrated[0].recalibration == calibrated[1].recalibration
    detectors = [bll.ood.Detector().calibrate(fit, rows) for rows in (permuted, frame)]
    verdicts = [detector.detect(permuted) for detector in detectors]
    assert torch.equal(verdicts[0].score, verdicts[1].score)
    trees = [fit.to_datatree(rows, VALUES, num_draws=5, prior=False) for rows in (permuted, X)]
    assert trees[0]["log_likelihood"].equals(trees[1]["log_likelihood"])
    stack = bll.Stack({"a": fit, "b": fit}, {"a": 0.5, "b": 0.5})
    assert isinstance(stack.predict(permuted).to_frame(), pl.DataFrame)
    torch.testing.assert_close(stack.predict(permuted).mean, fit.predict(X).mean)


def test_rows_beside_the_training_rows_go_into_their_order() -> None:
    layer, data = bll.LastLayer(bll.likelihoods.Categorical(3)), (frame_of("pandas"), CLASSES)
    made = [
        bll.fit(layer, data, inference=bll.Laplace(), calibration=(rows, CLASSES))
        for rows in (frame_of("pandas", PERMUTED), X)
    ]
    assert made[0].recalibration == made[1].recalibration
    short = bll.SVI(num_epochs=2)
    judged = [
        bll.fit(layer, data, inference=short, validation_data=(rows, CLASSES))
        for rows in (frame_of("polars", PERMUTED), X)
    ]
    assert torch.equal(judged[0].predict(X).probs, judged[1].predict(X).probs)
    with pytest.raises(ValueError, match=r"validation_data: .*none named size"):
        bll.fit(
            layer, data, inference=short, validation_data=(frame_of("polars", ["age", "income"]), CLASSES)
        )


def test_names_are_printed_saved_and_drawn(fit: bll.Fit, tmp_path) -> None:
    assert "age, income, size" in repr(fit)
    constant = bll.fit(fit.layer, (frame_of("pandas").assign(sort=1.0), VALUES), inference=bll.Exact())
    assert "1 constant in the training rows (sort), left out" in repr(constant)
    tree = fit.to_datatree(frame_of("polars"), VALUES, num_draws=50, prior=False)
    assert tree["posterior"]["feature"].values.tolist() == NAMES
    assert tree["constant_data"]["feature_center"].sel(feature="income") == pytest.approx(
        X[:, 1].mean(), abs=1e-6
    )
    assert strongest(tree, 3, None)["weight"].values.tolist() == ["income", "age", "size"]
    before = bll.prior_predictive(fit.layer, frame_of("pandas"), VALUES, num_draws=5, weights=True)
    assert before["prior"]["feature"].values.tolist() == NAMES
    other = fit.to_datatree(X, VALUES, num_draws=5, prior=False, feature_names=["a", "b", "c"])
    assert other["posterior"]["feature"].values.tolist() == ["a", "b", "c"]
    fit.save(tmp_path / "fit")
    loaded = bll.load(tmp_path / "fit")
    assert loaded.feature_names == tuple(NAMES)
    assert torch.equal(loaded.predict(frame_of("polars", PERMUTED)).mean, fit.predict(X).mean)


class Scaled(nn.Module):
    """A backbone that keeps the columns, and says so."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.is_floating_point()
        return rows * torch.tensor([1.0, 2.0, 3.0])

    def get_feature_names_out(self, names: tuple[str, ...]) -> list[str]:
        return [f"scaled {name}" for name in names]


@pytest.mark.parametrize("store", [False, True])
def test_a_backbone_gets_floats_in_the_order_of_training(store: bool, tmp_path) -> None:
    layer, folder = bll.LastLayer(bll.likelihoods.Gaussian()), tmp_path / "store" if store else None
    whole = pd.DataFrame(np.round(10 * X).astype(int), columns=NAMES)
    for backbone, names in (
        (Scaled(), tuple(f"scaled {name}" for name in NAMES)),
        (nn.Linear(3, 4).double(), None),
    ):
        fit = bll.fit(layer, (whole, VALUES), backbone, bll.Exact(), store=folder)
        assert fit.feature_names == tuple(NAMES) and fit.head.feature_names == names
        assert torch.equal(fit.predict(whole[PERMUTED]).mean, fit.predict(whole.to_numpy(float)).mean)
        assert fit.features(whole).feature_names == names
        fit.save(tmp_path / "fit")
        assert bll.load(tmp_path / "fit", head_only=True).feature_names is None
        assert bll.load(tmp_path / "fit", backbone=backbone).feature_names == tuple(NAMES)
    with pytest.raises(ValueError, match="none named size"):
        fit.predict(whole[["age", "income"]])


def test_stores_and_checkpoints_keep_the_names(tmp_path) -> None:
    layer, frame = bll.LastLayer(bll.likelihoods.Gaussian()), frame_of("pandas")
    stored = bll.extract(None, (frame, VALUES), store=tmp_path / "store")
    assert stored.feature_names == bll.Features.open(stored.path).feature_names == tuple(NAMES)
    renamed = bll.extract(None, (frame.set_axis(["a", "b", "c"], axis=1), VALUES), store=tmp_path / "store")
    assert renamed.feature_names == ("a", "b", "c")
    fit = bll.fit(layer, stored, inference=bll.Exact())
    assert fit.feature_names == tuple(NAMES)
    assert torch.equal(fit.predict(frame_of("polars", PERMUTED)).mean, fit.predict(stored).mean)
    kept = [
        bll.fit(layer, (frame, VALUES), inference=bll.Exact(), checkpoint=tmp_path / "fit") for _ in range(2)
    ]
    assert kept[0].feature_names == kept[1].feature_names == tuple(NAMES)
    chosen = bll.choose({"a": layer, "b": layer}, (frame, VALUES), inference=bll.Exact())
    assert chosen.fit.feature_names == tuple(NAMES)


def test_columns_of_predictions(of_classes: bll.Fit) -> None:
    frame = frame_of("polars", rows=slice(20))
    made = of_classes.predict(frame)
    assert made.to_frame().columns == ["label", "confidence", "p0", "p1", "p2", *PARTS]
    np.testing.assert_array_equal(made.to_frame()["p1"], made.probs[:, 1])
    watched = of_classes.with_detector(bll.ood.Detector().calibrate(of_classes, X))
    made = watched.predict(frame)
    table = made.to_frame()
    assert table.columns[-3:] == ["is_ood", "ood_p_value", "ood_score"]
    assert table["is_ood"].dtype == pl.Boolean
    np.testing.assert_array_equal(table["ood_p_value"], made.ood.p_value)


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_come_back_as_they_came(library: str, of_classes: bll.Fit) -> None:
    names = np.array(["cheap", "fair", "high"])  # sorted as their numbers
    frame = LIBRARIES[library](
        {**{name: X[:, NAMES.index(name)] for name in NAMES}, "price": list(names[CLASSES])}
    )
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(3)), (frame, "price"), inference=bll.Laplace())
    expected = of_classes.predict(X)
    for given in (frame_of(library), frame_of(library, PERMUTED)):
        table = fit.predict(given).to_frame()
        assert type(table) is type(frame)
        assert np.asarray(table["label"]).tolist() == names[expected.label.numpy()].tolist()
        np.testing.assert_array_equal(np.asarray(table["p_fair"]), expected.probs[:, 1])
    tree = fit.to_datatree(frame_of(library, PERMUTED), frame["price"], num_draws=5, prior=False)
    assert tree["posterior"]["feature"].values.tolist() == NAMES
    assert tree["posterior"]["output"].values.tolist() == names.tolist()


def test_several_targets_have_columns_of_their_own() -> None:
    both = pd.DataFrame({"u": VALUES, "v": -VALUES})
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (frame_of("pandas"), both), inference=bll.Exact()
    )
    made = fit.predict(frame_of("pandas"))
    expected = [f"{name}_{t}" for name in ("mean", "scale", "lower", "upper", *PARTS) for t in (0, 1)]
    assert list(made.to_frame()) == expected
    np.testing.assert_array_equal(made.to_frame()["upper_1"], made.interval(0.9)[1][:, 1])
    flags = (np.stack([VALUES, -VALUES], 1) > 0).astype(int)
    labels = bll.fit(
        bll.LastLayer(bll.likelihoods.Bernoulli()), (frame_of("polars"), flags), inference=bll.Laplace()
    )
    table = labels.predict(frame_of("polars")).to_frame()
    assert table.columns == [
        f"{name}_{t}" for name in ("label", "confidence", "probs", *PARTS) for t in (0, 1)
    ]


def test_the_estimators_hand_names_on_and_frames_back() -> None:
    pytest.importorskip("sklearn", "1.9", reason="earlier ones do not see the columns of polars 2")
    one = bll.sklearn.BayesianLastLayerRegressor().fit(frame_of("polars"), VALUES)
    assert one.fit_.feature_names == tuple(NAMES)
    shown = one.uncertainty(frame_of("polars", rows=slice(5)))
    assert isinstance(shown, pl.DataFrame) and shown.columns == PARTS
    np.testing.assert_allclose(shown["total"], one.fit_.predict(X[:5]).total)
    tree = one.fit_.to_datatree(frame_of("pandas", PERMUTED), VALUES, num_draws=5, prior=False)
    assert tree["posterior"].sizes["draw"] == 5
