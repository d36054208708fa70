"""Data frames in and out: their numbers, names, library and index."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from bll_pyro.features.arrays import to_tensor
from bll_pyro.features.data import read
from bll_pyro.features.store import Features
from bll_pyro.features.tables import Table, names_after, order_of, table_of, view_of

ROWS = {"a": [1.5, 2.5, -1.0], "b": [1, 2, 3], "c": [True, False, True]}
NUMBERS = np.array([[1.5, 1, 1], [2.5, 2, 0], [-1, 3, 1]])
LIBRARIES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


@pytest.mark.parametrize("library", LIBRARIES)
def test_numbers_and_names_of_a_frame(library):
    frame = LIBRARIES[library](ROWS)
    assert torch.equal(to_tensor(frame, "x"), torch.from_numpy(NUMBERS))
    source = read((frame, [0, 1, 1]), need_targets=True)
    assert source.feature_names == ("a", "b", "c")
    assert torch.equal(source.tensors()[0], torch.from_numpy(NUMBERS))
    column = frame["b"]
    assert to_tensor(column, "y").tolist() == [1, 2, 3] and to_tensor(column, "y").dtype == torch.int64


def test_a_batch_of_records_is_read_as_a_table():
    batch = pa.RecordBatch.from_pydict(ROWS)
    assert read(batch, need_targets=False).feature_names == ("a", "b", "c")
    assert torch.equal(to_tensor(batch, "x"), torch.from_numpy(NUMBERS))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_columns_of_one_type_keep_it(dtype):
    values = np.arange(6).reshape(3, 2).astype(dtype)
    for frame in (pd.DataFrame(values, columns=["a", "b"]), pl.DataFrame(values, schema=["a", "b"])):
        tensor = to_tensor(frame, "x")
        assert tensor.dtype == torch.from_numpy(values).dtype
        assert np.array_equal(tensor.numpy(), values)
    assert read(frame, need_targets=False).tensors()[0].is_floating_point()  # as a backbone needs them


def test_numbers_that_numpy_does_not_know():
    frame = pl.DataFrame(
        {"price": [Decimal("1.25"), Decimal("2.50")], "n": pl.Series([1, 2], dtype=pl.UInt64)}
    )
    assert to_tensor(frame, "x").tolist() == [[1.25, 1.0], [2.5, 2.0]]
    nullable = pd.DataFrame({"a": pd.array([1, 2], dtype="Int64"), "b": pd.array([0.5, 1], dtype="Float32")})
    assert to_tensor(nullable, "x").tolist() == [[1, 0.5], [2, 1]]
    arrow = nullable.astype({"a": "double[pyarrow]", "b": "double[pyarrow]"})
    assert to_tensor(arrow, "x").tolist() == [[1, 0.5], [2, 1]]
    assert (
        to_tensor(pd.DataFrame(NUMBERS).astype(pd.SparseDtype(float, 0.0)), "x").tolist() == NUMBERS.tolist()
    )
    flags = pd.DataFrame({"a": [True, False]}).astype("bool[pyarrow]")
    assert to_tensor(flags["a"], "y").tolist() == [True, False]


WRONG = {
    "text": (["x", "y"], r"town \(String\).*OneHotEncoder"),
    "objects": ([1, "y"], r"town \((Object|String)\).*OneHotEncoder"),
    "complex": ([1j, 2.0], r"town \(Unknown\)"),
    "dates": ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], r"town \(.*\).*turn dates"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_columns_that_are_no_numbers_are_named(kind):
    values, message = WRONG[kind]
    with pytest.raises(TypeError, match=rf"x: expected columns of numbers, got {message}"):
        to_tensor(pd.DataFrame({"a": [1.0, 2.0], "town": values}), "x")


@pytest.mark.parametrize("library", LIBRARIES)
def test_missing_values_are_named(library):
    rows = {"a": [1.0, 2.0, 3.0], "age": [1.0, None, None], "n": [1, 2, None]}
    with pytest.raises(
        ValueError, match=r"x: .*missing values, got some in age, n \(2 of 3 rows\).*SimpleImputer"
    ):
        to_tensor(LIBRARIES[library](rows), "x")
    with pytest.raises(ValueError, match=r"missing values, got some in n \(1 of 3 rows\)"):
        to_tensor(LIBRARIES[library]({"n": [1, 2, None]}), "x")


def test_missing_values_of_a_series_are_nan():
    for series in (pl.Series([1, None]), pl.Series([True, None]), pd.Series([1, None], dtype="Int64")):
        assert to_tensor(series, "y").isnan().tolist() == [False, True]


def test_frames_that_cannot_be_read():
    twice = pd.DataFrame(np.ones((2, 3)), columns=["a", "b", "a"])
    with pytest.raises(
        ValueError, match=r"x: expected columns with different names, got a more than once; rename"
    ):
        to_tensor(twice, "x")
    with pytest.raises(
        TypeError, match=r"x: expected a frame whose rows are in memory, got a lazy LazyFrame.*collect"
    ):
        to_tensor(pl.LazyFrame(ROWS), "x")
    with pytest.raises(ValueError, match="without columns"):
        to_tensor(pd.DataFrame(index=[0, 1]), "x")
    with pytest.raises(TypeError, match=r"strings as names, or none, got 3 among them.*astype\(str\)"):
        read(pd.DataFrame(np.ones((2, 2)), columns=["a", 3]), need_targets=False)


def test_numbers_as_names_are_none():
    assert read(pd.DataFrame(NUMBERS), need_targets=False).feature_names is None


def test_the_column_of_the_targets_by_name():
    for make in LIBRARIES.values():
        source = read((make(ROWS), "b"), need_targets=True)
        inputs, targets = source.tensors()
        assert source.feature_names == ("a", "c")
        assert torch.equal(inputs, torch.from_numpy(NUMBERS[:, [0, 2]])) and targets.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"expected a column 'y' with the targets, got a, b, c"):
        read((pd.DataFrame(ROWS), "y"), need_targets=True)
    with pytest.raises(TypeError, match=r"expected a data frame beside the name.*got ndarray and 'y'"):
        read((NUMBERS, "y"), need_targets=True)


def test_order_of_columns():
    assert order_of(["a", "b", "c"], ["c", "a", "b"], "x") == [2, 0, 1]
    with pytest.raises(
        ValueError, match=r"x: expected the columns of the training rows, got none named d among a, b"
    ):
        order_of(["a", "b"], ["a", "d"], "x")
    with pytest.raises(ValueError, match=r"got b beside them; drop them: frame\[list\(fit.feature_names\)\]"):
        order_of(["a", "b"], ["a"], "x")


def test_rows_are_arranged_with_their_targets_weights_and_order():
    from bll_pyro.features.columns import Data

    frame = pd.DataFrame(NUMBERS, columns=["a", "b", "c"])
    source = read(Data((frame, [0, 1, 2]), sample_weight=[1.0, 2.0, 3.0]), need_targets=True)
    made = source.subset(torch.tensor([2, 0])).arranged(["c", "a", "b"], "x")
    inputs, targets = next(made.batches(10))
    assert torch.equal(inputs, torch.from_numpy(NUMBERS[[2, 0]][:, [2, 0, 1]])) and targets.tolist() == [2, 0]
    whole = source.arranged(["c", "a", "b"], "x")
    assert whole.columns is source.columns and whole.feature_names == ("c", "a", "b")
    assert source.arranged(None, "x") is source and source.arranged(["a", "b", "c"], "x") is source
    stored = Features.from_tensors(NUMBERS)
    stored.feature_names = ("a", "b", "c")
    made = read(stored, need_targets=False).arranged(["b", "c", "a"], "x")
    assert torch.equal(made.tensors()[0], torch.from_numpy(NUMBERS[:, [1, 2, 0]]))


def test_frames_out():
    columns = {"label": np.array(["x", "y"], dtype=object), "mean": np.array([1.0, 2.0])}
    assert isinstance(Table().frame(columns), pd.DataFrame)
    frame = pd.DataFrame(
        {"a": [1.0, 2.0]}, index=pd.MultiIndex.from_tuples([("u", 1), ("u", 2)], names=["k", "l"])
    )
    made = table_of(frame, "x").frame(columns)
    assert (
        made.index.equals(frame.index)
        and made["mean"].tolist() == [1, 2]
        and made["label"].tolist() == ["x", "y"]
    )
    for library in (pl.DataFrame, pa.table):
        table = table_of(library({"a": [1.0, 2.0]}), "x")
        assert type(table.frame(columns)) is type(library({"a": [1]}))
        assert isinstance(table.in_pandas.frame(columns), pd.DataFrame)
    assert table_of(NUMBERS, "x") is None and table_of([1.0], "x") is None and view_of(object(), "x") is None


def test_names_after_a_backbone():
    class Doubled(torch.nn.Module):
        def get_feature_names_out(self, names):
            return [f"2 {name}" for name in names]

    assert names_after(None, ("a",)) == ("a",) and names_after(torch.nn.Identity(), ("a",)) is None
    assert names_after(Doubled(), ("a", "b")) == ("2 a", "2 b") and names_after(Doubled(), None) is None
