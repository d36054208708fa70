"""Centre and scale of features against NumPy in float64, and in the cases that lose digits."""

import numpy as np
import pytest
import torch

from bll_pyro.inference.standardization import Moments

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(500, 6)) * [1, 10, 0.1, 1, 5, 2] + [0, 3, -7, 100, 0, 1]


def cut(rows, sizes):
    return torch.as_tensor(rows).split(sizes)


@pytest.mark.parametrize("sizes", [500, 1, 7, [499, 1], [1, 499]])
def test_moments_of_any_cut_are_those_of_all_rows(sizes):
    parts = [Moments.of(part) for part in cut(ROWS, sizes)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == 500
    np.testing.assert_allclose(total.mean, ROWS.mean(0), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(total.variance, ROWS.var(0), rtol=1e-12)


def test_moments_are_measured_in_float64_far_from_zero():
    # the textbook sum of squares loses all digits here; the reference has the offset taken away beforehand
    noise = RNG.normal(size=(10_000, 3))
    total = None
    for part in cut(noise + 1e9, 128):
        total = Moments.of(part) if total is None else total + Moments.of(part)
    np.testing.assert_allclose(total.variance, noise.var(0), rtol=1e-6)
    naive = ((noise + 1e9) ** 2).mean(0) - (noise + 1e9).mean(0) ** 2
    assert not np.allclose(naive, noise.var(0), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns(dtype):
    rows = torch.full((1000, 3), 0.1, dtype=dtype)
    rows[:, 1] = torch.linspace(0, 1, 1000)
    total = None
    for part in rows.split(7):
        total = Moments.of(part) if total is None else total + Moments.of(part)
    assert total.constant.tolist() == [True, False, True]


def test_the_variance_of_a_constant_column_is_exactly_zero():
    total = None
    for part in torch.full((1000, 1), 0.1, dtype=torch.float64).split(7):
        total = Moments.of(part) if total is None else total + Moments.of(part)
    assert total.variance.item() == 0
    assert total.mean.item() == 0.1


def test_rounding_around_a_constant_is_no_variance():
    rows = torch.full((1000, 1), 1000.0)
    rows[::2] = torch.nextafter(rows[::2], torch.tensor(torch.inf))
    assert rows.unique().numel() == 2
    assert Moments.of(rows).constant.item()
    # the same relative spread is well above the rounding of float64
    assert not Moments.of(rows.double()).constant.item()


def test_small_but_real_features_are_not_constant():
    rows = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) * 1e-20
    assert not Moments.of(rows).constant.item()


def test_errors():
    with pytest.raises(ValueError, match="one width, got 2 and 3"):
        Moments.of(torch.zeros(2, 2)) + Moments.of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"rows \[n, D\]"):
        Moments.of(torch.zeros(3))
