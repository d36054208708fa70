"""Sums of rows as they are stored, next to sums in extended precision."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import bll_pyro as bll
from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.inference.exact import raw_sums

N, D, T = 5000, 7, 2
EPS = torch.finfo(torch.float64).eps


def rows_and_targets():
    """Rows whose means are up to 10,000 standard deviations from 0, and drift along the rows."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=random) * torch.tensor([1e-3, 1, 1, 10, 1, 100, 1])
    x += torch.tensor([10.0, 0, 1e3, 1e3, -5, 0, 1]) + torch.linspace(0, 2, N)[:, None]
    return x, 100 + x[:, :T] + torch.randn(N, T, generator=random)


def in_extended_precision(x, y, w):
    """Means and centred sums by numpy's long doubles."""
    h, z, w = (each.double().numpy().astype(np.longdouble) for each in (x, y, w))
    feature_mean, target_mean = w @ h / w.sum(), w @ z / w.sum()
    h, z = h - feature_mean, z - target_mean
    return feature_mean, target_mean, h.T @ (w[:, None] * h), h.T @ (w[:, None] * z), w @ z**2


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long doubles are doubles here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_lose_no_more_than_the_digits_that_are_allowed(monkeypatch, weighted, dtype):
    monkeypatch.setattr(raw_sums, "FEWEST_ROWS", 500)
    monkeypatch.setattr(raw_sums, "BLOCK_NUMBERS", 500 * D)
    monkeypatch.setattr(raw_sums, "CALL_NUMBERS", 500 * D)
    x, y = (each.to(dtype) for each in rows_and_targets())
    weight = torch.rand(N, generator=torch.Generator().manual_seed(1)) * (torch.arange(N) % 3)
    columns = Columns(weight) if weighted else NO_COLUMNS
    found = raw_sums.raw_sums(bll.Features.from_tensors(x, y), y, columns)
    expected = in_extended_precision(x, y, weight if weighted else torch.ones(N))
    h, y_scale = np.sqrt(np.diag(expected[2])), np.sqrt(expected[4])
    units = (h / np.sqrt(N), y_scale / np.sqrt(N), np.outer(h, h), np.outer(h, y_scale), y_scale**2)
    got = (found.feature_mean, found.target_mean, found.gram, found.cross, found.square)
    # the shift loses a factor of N over the rows of a block, and a sum of N numbers one of sqrt(N) where roundings are random;
    # means far from 0 cannot be known better than their own rounding
    for ours, theirs, unit in zip(got, expected, units, strict=True):
        allowed = EPS * (N / 500) * np.sqrt(N) * unit
        if ours.dim() == 1 and ours is not found.square:
            allowed = allowed + 2 * EPS * np.abs(theirs)
        assert (np.abs(ours.numpy() - theirs) <= allowed).all()
    assert found.num_rows == (int((weight > 0).sum()) if weighted else N)


def threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


@pytest.mark.parametrize("num_columns", [7, 600])
def test_sums_are_the_same_up_to_rounding_by_any_number_of_threads(monkeypatch, num_columns):
    """Each thread adds every other call's rows; with 600 columns two threads of BLAS share a product."""
    monkeypatch.setattr(raw_sums, "CALL_NUMBERS", 600 * num_columns)
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, num_columns, generator=random), torch.randn(4000, 1, generator=random)
    weight = torch.rand(4000, generator=random)
    features, before, found = bll.Features.from_tensors(x, y), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(raw_sums.raw_sums(features, y, Columns(weight)))
    finally:
        torch.set_num_threads(before)
    w, h = weight.double(), x.double()
    centred = h - (w @ h) / w.sum()
    for sums in found:
        torch.testing.assert_close(sums.gram, centred.mT @ (w[:, None] * centred), rtol=1e-12, atol=1e-10)
        assert sums.num_rows == 4000
        torch.testing.assert_close(sums.gram, found[0].gram, rtol=1e-13, atol=1e-11)


def test_an_error_of_reading_is_raised_and_gives_the_threads_back():
    class Rows:
        shape, dtype = (N, D), torch.float32

        def __len__(self):
            return N

        def __getitem__(self, index):
            raise OSError("shard 3 is gone")

    before = threads()
    with pytest.raises(OSError, match="shard 3"):
        raw_sums.raw_sums(Rows(), rows_and_targets()[1], NO_COLUMNS)
    assert threads() == before


def test_threads_of_a_product_are_as_many_as_asked_for_and_come_back():
    before = threads()
    with raw_sums._blas_threads(1):
        assert set(threads()) == {1}
    assert threads() == before


def test_blocks_of_two_threads_that_overlap_give_the_number_back():
    before = threads()
    first, second = raw_sums._blas_threads(1), raw_sums._blas_threads(1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(threads()) == {1}
    second.__exit__(None, None, None)
    assert threads() == before
