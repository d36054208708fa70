"""Centre and scale of features against NumPy in float64, and in the cases that lose digits."""

import numpy as np
import pytest
import torch

from bll_pyro.features.standardize import Moments, Standardizer

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


def test_a_scale_for_each_feature():
    standardizer = Standardizer.fit(cut(ROWS, 64), per_feature=True)
    z = standardizer(torch.as_tensor(ROWS)).numpy()
    np.testing.assert_allclose(z, (ROWS - ROWS.mean(0)) / ROWS.std(0), rtol=1e-10, atol=1e-12)
    assert standardizer.center.dtype == torch.float64


def test_one_scale_for_all_features():
    standardizer = Standardizer.fit(cut(ROWS, 64), per_feature=False)
    scale = np.sqrt(ROWS.var(0).mean())
    assert standardizer.scale.shape == (6,)
    np.testing.assert_allclose(standardizer.scale, scale, rtol=1e-12)
    z = standardizer(torch.as_tensor(ROWS))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.square().mean(), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.uint8, torch.float32),
    ],
)
def test_constants_have_the_type_of_the_data(dtype, expected):
    standardizer = Standardizer.fit([torch.tensor([[1, 2], [3, 5]], dtype=dtype)], per_feature=True)
    assert standardizer.center.dtype == standardizer.scale.dtype == expected
    assert standardizer.center.tolist() == [2, 3.5]
    assert standardizer.scale.tolist() == [1, 1.5]


@pytest.mark.parametrize("per_feature", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns_keep_scale_one_and_carry_nothing(per_feature, dtype):
    rows = torch.full((1000, 3), 0.1, dtype=dtype)
    rows[:, 1] = torch.linspace(0, 1, 1000)
    standardizer = Standardizer.fit(rows.split(7), per_feature=per_feature)
    if per_feature:
        assert standardizer.scale[[0, 2]].tolist() == [1, 1]
    z = standardizer(rows)
    assert z[:, [0, 2]].abs().max() < 1e-7
    assert z[:, 1].std() > 0.5


def test_the_variance_of_a_constant_column_is_exactly_zero():
    total = None
    for part in torch.full((1000, 1), 0.1, dtype=torch.float64).split(7):
        total = Moments.of(part) if total is None else total + Moments.of(part)
    assert total.variance.item() == 0
    assert total.mean.item() == 0.1


def test_rounding_around_a_constant_is_not_blown_up():
    rows = torch.full((1000, 1), 1000.0)
    rows[::2] = torch.nextafter(rows[::2], torch.tensor(torch.inf))
    assert rows.unique().numel() == 2
    assert Standardizer.fit([rows], per_feature=True).scale.item() == 1
    # the same relative spread is well above the rounding of float64
    assert Standardizer.fit([rows.double()], per_feature=True).scale.item() < 1e-3


def test_small_but_real_features_are_scaled():
    rows = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) * 1e-20
    assert Standardizer.fit([rows], per_feature=True)(rows).std().item() == pytest.approx(1, rel=1e-2)


def test_all_columns_constant_and_a_single_row():
    for rows in (torch.ones(5, 2), torch.tensor([[3.0, 4.0]])):
        for per_feature in (True, False):
            standardizer = Standardizer.fit([rows], per_feature=per_feature)
            assert standardizer.scale.tolist() == [1, 1]
            assert standardizer(rows).abs().max() == 0


def test_identity_inverse_and_conversion():
    rows = torch.as_tensor(ROWS)
    assert torch.equal(Standardizer.identity(6, torch.float64)(rows), rows)
    standardizer = Standardizer.fit([rows], per_feature=True)
    np.testing.assert_allclose(standardizer.inverse(standardizer(rows)), ROWS, rtol=1e-12)
    assert standardizer.to(dtype=torch.float32).scale.dtype == torch.float32
    assert standardizer.to("cpu").scale.dtype == torch.float64


def test_errors():
    with pytest.raises(ValueError, match="at least one row"):
        Standardizer.fit([], per_feature=True)
    with pytest.raises(ValueError, match="one width, got 2 and 3"):
        Standardizer.fit([torch.zeros(2, 2), torch.zeros(2, 3)], per_feature=True)
    with pytest.raises(ValueError, match=r"rows \[n, D\]"):
        Moments.of(torch.zeros(3))
    rows = torch.zeros(4, 3)
    rows[2, 1] = torch.nan
    for value in (torch.nan, torch.inf):
        rows[2, 1] = value
        for per_feature in (True, False):
            with pytest.raises(ValueError, match="column 1"):
                Standardizer.fit([rows], per_feature=per_feature)
