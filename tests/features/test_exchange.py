"""Stores of features to Arrow and Parquet and back: the same rows, ids and targets; what does not fit is named."""

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import bll_pyro as bll
from bll_pyro.features import exchange

N, D = 30, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
TARGETS = {"none": None, "classes": torch.arange(N) % 4, "two": torch.randn(N, 2)}
IDS = {"numbers": range(N), "others": torch.arange(N) * 7 + 3, "texts": [f"r{k:02d}" for k in range(N)]}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(exchange, "BATCH_BYTES", 7 * D * 4)
    monkeypatch.setattr(exchange, "PART_BYTES", 12 * D * 4)


def made(path, dtype=torch.float32, targets=None, ids=range(N)):
    bll.Features.writer(path).write("a", X.to(dtype), targets, row_ids=ids)
    return bll.Features.commit(path)


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_a_store_comes_back_from_parquet(tmp_path, ids, targets):
    features = made(tmp_path / "f", targets=targets, ids=ids)
    bll.to_parquet(features, tmp_path / "f.parquet")
    assert parquet.ParquetFile(tmp_path / "f.parquet").num_row_groups == 5
    back = bll.from_parquet(tmp_path / "f.parquet", tmp_path / "g")
    assert back.sha256 == features.sha256
    assert torch.equal(back.tensor(), features.tensor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(tmp_path, dtype):
    features = made(tmp_path / "f", dtype)
    table = bll.to_arrow(features).read_all()
    back = bll.from_arrow(table, tmp_path / "g", dtype=dtype)
    assert back.sha256 == features.sha256


def test_columns_of_a_table_are_features(tmp_path):
    table = pa.table({"a": X[:, 0].numpy(), "n": range(N), "y": range(N)})
    features = bll.from_arrow(table, tmp_path / "f", columns=["n", "a"], target="y", row_id=None)
    assert features.feature_names == ("n", "a") and features.row_ids == range(N)
    assert torch.equal(features.tensor(), torch.stack([torch.arange(N).float(), X[:, 0]], 1))
    assert torch.equal(features.targets, torch.arange(N))


WRONG = {
    "missing": ({"x": [1.0]}, {}, "a column 'features', got x; name the columns"),
    "gaps": ({"x": [1.0, None]}, {"columns": ["x"]}, "a value in each row, got 1 gaps"),
    "widths": ({"features": [[1.0], [1.0, 2.0]]}, {}, r"lists of one length, got lengths \[1, 2\]"),
    "nan": ({"x": [1.0, float("nan")], "row_id": ["a", "b"]}, {"columns": ["x"]}, "with the ids 'b'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_are_refused(tmp_path, case):
    columns, options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        bll.from_arrow(pa.table(columns), tmp_path / "f", **options)
