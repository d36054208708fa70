"""Arrays of every kind become tensors, with their values, and bad ones are refused with a remedy."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import bll_pyro as bll
from bll_pyro.features.arrays import check_finite, rows_per_chunk, to_tensor


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float32, np.float16, np.int64, np.uint8, np.int8, bool],
)
def test_numpy_keeps_dtype_and_memory(dtype):
    array = np.arange(12).reshape(4, 3).astype(dtype)
    tensor = to_tensor(array, "x")
    assert tensor.dtype == torch.from_numpy(array).dtype
    assert tensor.data_ptr() == array.ctypes.data
    assert np.array_equal(tensor.numpy(), array)


def test_read_only_arrays_are_shared_without_a_warning(tmp_path):
    array = np.arange(6.0)
    array.flags.writeable = False
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_tensor(array, "x").data_ptr() == array.ctypes.data
        assert to_tensor(mapped, "x").data_ptr() == mapped.ctypes.data
        assert to_tensor(np.broadcast_to(np.float32(3), (2, 2)), "x").tolist() == [[3, 3], [3, 3]]


def test_unusual_layouts_keep_their_values():
    array = np.arange(12.0).reshape(4, 3)
    assert to_tensor(array[::-1], "x").tolist() == array[::-1].tolist()
    assert to_tensor(array.astype(">f8"), "x").tolist() == array.tolist()
    record = np.zeros(3, dtype=[("a", "i1"), ("b", "<f8")])
    record["b"] = [1, 2, 3]
    assert to_tensor(record["b"], "x").tolist() == [1, 2, 3]  # strides that are no multiple of the item


def test_unsigned_integers_are_widened():
    assert to_tensor(np.array([65535], np.uint16), "x").dtype == torch.int32
    assert to_tensor(np.array([2**32 - 1], np.uint32), "x").tolist() == [2**32 - 1]
    assert to_tensor(torch.tensor([3], dtype=torch.uint64), "x").dtype == torch.int64
    with pytest.raises(ValueError, match=r"below 2\*\*63"):
        to_tensor(np.array([2**63], np.uint64), "x")


def test_lists():
    assert to_tensor([[1, 2], [3, 4]], "x").dtype == torch.int64
    assert to_tensor([1.5, 2], "x").dtype == torch.float64
    stacked = to_tensor([torch.zeros(2), torch.ones(2)], "x")
    assert stacked.tolist() == [[0, 0], [1, 1]]
    for ragged in ([[1, 2], [3]], [torch.zeros(2), torch.zeros(3)]):
        with pytest.raises(ValueError, match="rows of different shapes"):
            to_tensor(ragged, "x")


def test_tensors_are_detached_and_checked():
    weight = torch.ones(3, requires_grad=True)
    tensor = to_tensor(weight, "x")
    assert not tensor.requires_grad
    assert tensor.data_ptr() == weight.data_ptr()
    with pytest.raises(TypeError, match="real numbers"):
        to_tensor(torch.zeros(2, dtype=torch.complex64), "x")


SPARSE = {
    "csr": lambda dense: sparse.csr_matrix(dense),
    "csc array": lambda dense: sparse.csc_array(dense),
    "coo": lambda dense: sparse.coo_matrix(dense),
    "torch coo": lambda dense: torch.from_numpy(dense).to_sparse(),
    "torch csr": lambda dense: torch.from_numpy(dense).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_arrays_become_dense_where_they_fit(kind, monkeypatch):
    """Words of texts, for example: they can be fitted and predicted as they are."""
    random = np.random.default_rng(0)
    dense = random.poisson(0.3, size=(50, 4)).astype("float32")
    made, targets = SPARSE[kind](dense), dense[:, 0] + 0.1 * random.normal(size=50).astype("float32")
    assert torch.equal(to_tensor(made, "x"), torch.from_numpy(dense))
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    fit = bll.fit(layer, (made, targets), inference=bll.Exact())
    expected = bll.fit(layer, (dense, targets), inference=bll.Exact()).predict(dense).mean
    assert torch.equal(fit.predict(made).mean, expected)
    monkeypatch.setattr("bll_pyro.features.arrays.MAX_DENSE_BYTES", 799)
    with pytest.raises(ValueError, match=r"x: expected a sparse array of at most.*\[50, 4\].*TruncatedSVD"):
        to_tensor(made, "x")


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "b"]),
        np.array([object()]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, np.complex64),
        ["cat", "dog"],
    ],
)
def test_what_is_not_a_number_is_refused(array):
    with pytest.raises(TypeError, match=r"x: expected real numbers.*got dtype.*convert"):
        to_tensor(array, "x")


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match=r"x: expected a NumPy array.*got dict.*Dataset"):
        to_tensor({"a": 1}, "x")


def test_masked_arrays():
    assert to_tensor(np.ma.masked_array([1.0, 2.0], mask=False), "x").tolist() == [1, 2]
    with pytest.raises(ValueError, match="masked"):
        to_tensor(np.ma.masked_array([1.0, 2.0], mask=[True, False]), "x")


def test_data_frames():
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [1, 2]})
    assert to_tensor(frame, "x").tolist() == [[1.5, 1.0], [2.5, 2.0]]
    assert to_tensor(frame["b"], "x").dtype == torch.int64


def test_data_frames_of_mixed_and_nullable_columns():
    mixed = pd.DataFrame({"a": [1.5, 2.5], "b": [True, False]})
    assert to_tensor(mixed, "x").tolist() == [[1.5, 1.0], [2.5, 0.0]]
    labels = pd.Series([1, 2], dtype="Int64")
    assert to_tensor(labels, "x").dtype == torch.int64
    missing = to_tensor(pd.Series([1, None], dtype="Int64"), "x")
    assert missing.dtype == torch.float64
    assert missing.isnan().tolist() == [False, True]


def test_text_columns_are_named():
    frame = pd.DataFrame({"a": [1.5, 2.5], "town": ["x", "1.5"]})
    with pytest.raises(TypeError, match=r"columns of numbers, got town .*OneHotEncoder"):
        to_tensor(frame, "x")


def test_check_finite_names_number_and_first_row(monkeypatch):
    tensor = torch.zeros(1000, 3, dtype=torch.float64)
    check_finite(tensor, "inputs")
    tensor[712, 1] = torch.nan
    tensor[713, 0] = torch.inf
    tensor[999, 2] = -torch.inf
    for chunk in (1, 100, 2**26):
        monkeypatch.setattr("bll_pyro.features.arrays.rows_per_chunk", lambda t, chunk=chunk: chunk)
        with pytest.raises(
            ValueError, match=r"inputs: expected finite.*1 NaN and 2 infinite.*row 712;.*remove"
        ):
            check_finite(tensor, "inputs")


def test_check_finite_passes_what_cannot_be_infinite():
    check_finite(torch.arange(3), "labels")
    check_finite(torch.zeros(0, 4), "nothing")
    check_finite(torch.tensor(1.0), "a number")
    with pytest.raises(ValueError, match="row 0"):
        check_finite(torch.tensor(torch.nan), "a number")


def test_chunks_have_about_the_wanted_size():
    assert rows_per_chunk(torch.zeros(10, 4, dtype=torch.float64), 64) == 2
    assert rows_per_chunk(torch.zeros(10, 4, dtype=torch.float64), 1) == 1
    assert rows_per_chunk(torch.zeros(0, 4)) > 0
