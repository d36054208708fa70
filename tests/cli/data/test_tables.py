"""Tables: columns by name, categories by scikit-learn's coding, kept as JSON; rows that come one block at a time."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from bll_pyro.cli.data import Table
from bll_pyro.cli.data.encoding import Encoding, learn
from bll_pyro.cli.data.tables import streamed
from bll_pyro.cli.usage import UsageError
from bll_pyro.declaration import from_plain, to_plain

FRAME = pd.DataFrame(
    {
        "age": [1.5, None, 3.0, 8.0, 2.0, 4.0],
        "colour": ["red", "blue", None, "red", "green", "blue"],
        "old": [True, False, True, True, False, False],
        "size": ["S", "L", "M", "M", "S", "L"],
        "code": [1, 2, 1, 10, 2, 1],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "name": ["a", "b", "c", "007", "e", "f"],
    }
)
SETTINGS = {"categories": ("code",), "ordered": {"size": ("S", "M", "L")}, "fill_missing": True}


def table(folder: Path, suffix: str, frame: pd.DataFrame = FRAME, **options: object) -> Table:
    path = folder / f"table{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    return Table(str(path), **{"target": "price", "index": "name", **SETTINGS, **options})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_features_are_those_of_scikit_learn(tmp_path: Path, suffix: str) -> None:
    data = table(tmp_path, suffix)
    opened = data.open()
    assert opened.row_ids == ["a", "b", "c", "007", "e", "f"]
    assert opened.targets.tolist() == [1, 2, 3, 4, 5, 6] and opened.classes is None
    training = np.array([0, 1, 2, 3])
    encoding = data.learned(opened, training)
    features = encoding.features(opened.inputs, Counter())
    inputs = FRAME.assign(colour=FRAME["colour"].fillna("(missing)"), code=FRAME["code"].astype(str))
    coder = ColumnTransformer(
        [
            ("age", SimpleImputer(strategy="median", add_indicator=True), ["age"]),
            ("colour", OneHotEncoder(handle_unknown="ignore"), ["colour"]),
            ("old", "passthrough", ["old"]),
            ("code", OneHotEncoder(handle_unknown="ignore"), ["code"]),
        ],
        sparse_threshold=0,
    )
    expected = coder.fit(inputs.iloc[training]).transform(inputs)
    assert np.allclose(features.drop(columns="size").to_numpy(), expected.astype(float))
    assert features["size"].tolist() == [0, 2, 1, 1, 0, 2]
    assert list(features)[:5] == ["age", "age is missing", "colour=(missing)", "colour=blue", "colour=red"]


def test_a_number_as_a_category_reads_the_same_from_every_type() -> None:
    kinds: list[object] = ["int64", "float64", "Int64", "float32"]
    found = [
        learn(pd.DataFrame({"code": pd.Series([1, 2, 10]).astype(kind)}), ["code"], {}, False)
        for kind in kinds
    ]
    assert all(one == found[0] for one in found) and found[0].columns[0].values == ("1", "10", "2")


def test_the_encoding_is_plain_json(tmp_path: Path) -> None:
    data = table(tmp_path, ".csv")
    opened = data.open()
    encoding = data.learned(opened, np.arange(6))
    read = from_plain(json.loads(json.dumps(to_plain(encoding, {}))), {})
    assert isinstance(read, Encoding) and read == encoding
    pd.testing.assert_frame_equal(read.features(opened.inputs), encoding.features(opened.inputs))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_blocks_are_the_whole(tmp_path: Path, suffix: str) -> None:
    """Also where the columns are in another order, and others are there."""
    data = table(tmp_path, suffix)
    opened = data.open()
    encoding = data.learned(opened, np.arange(4))
    whole = encoding.features(opened.inputs)
    other = table(tmp_path, suffix, FRAME[["code", "name", "size", "age", "old", "colour"]].assign(more=1))
    unknown: Counter[str] = Counter()
    blocks = list(streamed(other, encoding, 4, unknown))
    assert [len(row_ids) for row_ids, _ in blocks] == [4, 2]
    assert [name for row_ids, _ in blocks for name in row_ids] == opened.row_ids
    pd.testing.assert_frame_equal(pd.concat([frame for _, frame in blocks]), whole, check_index_type=False)
    assert unknown == {"colour": 1} and other.file().num_rows() == 6


def test_texts_are_classes_and_whole_numbers_are_not(tmp_path: Path) -> None:
    frame = FRAME.dropna(subset=["colour"])
    opened = table(tmp_path, ".csv", frame, target="colour", features=("age", "old")).open()
    assert opened.classes == ("blue", "green", "red") and opened.targets.tolist() == [2, 0, 2, 1, 0]
    assert table(tmp_path, ".csv", target="code", features=("age",)).open().classes == ("1", "10", "2")
    counts = table(tmp_path, ".csv", target="code", features=("age",), categories=()).open()
    assert counts.classes is None and counts.targets.dtype == np.int64
    several = table(tmp_path, ".csv", target=("price", "code"), features=("age",)).open()
    assert several.targets.shape == (6, 2)


def features_of(data: Table) -> pd.DataFrame:
    opened = data.open()
    return data.learned(opened, np.arange(4)).features(opened.inputs)


def rows(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"a": [1, 2, 3, 4], "y": [1, 2, 3, 4], **columns})


@pytest.mark.parametrize(
    ("frame", "options", "said"),
    [
        (rows(), {"target": "z"}, r"column 'z', got a table with a, y"),
        (rows(), {"target": "Y"}, r"'Y'.*did you mean 'y'"),
        (rows(b=["1", "x", "3", "4"]), {}, r"'b': expected numbers, got 'x' in row 1"),
        (
            rows(b=[1, None, 3, 4]),
            {},
            r"'b': expected a value in every row, got 1 missing, the first in row 1",
        ),
        (rows(b=["u", None, "v", "v"]), {}, r"'b'.*1 missing, the first in row 1"),
        (rows(b=[None] * 4), {}, r"'b': expected values in the training rows, got none"),
        (rows(b=[1, np.inf, 3, 4]), {}, r"'b'.*float32.*inf in row 1"),
        (
            rows(y=[1, None, 3, 4]),
            {},
            r"'y': expected a target in every row, got 1 missing, the first in row 1",
        ),
        (rows().iloc[:0], {}, "expected rows, got none"),
        (rows()[["y"]], {}, "expected columns of inputs beside y"),
        (
            rows(b=["S", "M", "S", "L"]),
            {"ordered": {"b": ("S", "M")}},
            r"'b': expected one of S, M, got 'L' in row 3",
        ),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, frame: pd.DataFrame, options: dict[str, object], said: str
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = Table(str(tmp_path / "t.csv"), **{"target": "y", **options})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        features_of(data)


def test_dates_and_names_are_no_features() -> None:
    with pytest.raises(UsageError, match="got dates"):
        learn(pd.DataFrame({"when": pd.date_range("2026-01-01", periods=3)}), [], {}, False)
    with pytest.raises(UsageError, match="at most 500 categories, got 501"):
        learn(pd.DataFrame({"name": [f"n{k}" for k in range(501)]}), [], {}, False)


def test_text_in_a_number_column_of_later_rows(tmp_path: Path) -> None:
    data = table(tmp_path, ".csv")
    encoding = data.learned(data.open(), np.arange(6))
    later = pd.concat([FRAME] * 2).astype({"age": object})
    later.iloc[9, 0] = "old"
    with pytest.raises(UsageError, match=r"'age': expected numbers, got 'old' in row 9"):
        list(streamed(table(tmp_path, ".csv", later), encoding, 4, Counter()))
    with pytest.raises(UsageError, match=r"column 'age', got a table with colour"):
        list(streamed(table(tmp_path, ".csv", FRAME.drop(columns="age")), encoding, 4, Counter()))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "cannot be read"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "cannot be read"),
        ("a.csv", b"a,b\n\xff\xfe,1\n", "cannot be read"),
        ("a.parquet", b"PAR1 cut", "cannot be read"),
        ("a.xlsx", b"", "write it as CSV or Parquet"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        Table(str(tmp_path / name)).open()
    with pytest.raises(UsageError, match="does not exist"):
        Table(str(tmp_path / f"no{name}")).open()
