"""The tabulated sums over eigenvalues against the sums themselves, in extended precision, and their slopes."""

import numpy as np
import pytest
import torch

from bll_pyro.inference.exact.spectral_sums import SpectralSums

RANDOM = np.random.default_rng(0)
EIGENVALUES = np.exp(RANDOM.uniform(-12, 9, 40))
EXPLAINED, MOMENT = RANDOM.gamma(1.0, size=(2, 40)), RANDOM.normal(size=(2, 40))
MEAN_SQUARE = RANDOM.gamma(1.0, size=40)


def made(number=40):
    parts = EIGENVALUES[:number], EXPLAINED[:, :number], MOMENT[:, :number], MEAN_SQUARE[:number]
    return SpectralSums(*map(torch.from_numpy, parts))


def direct(x):
    """``[M, T, 4]`` at ``x [M, T]``."""
    ratio = np.exp(x.astype(np.longdouble))[..., None]
    lam = EIGENVALUES.astype(np.longdouble)
    left = ratio / (lam + ratio)
    parts = np.log1p(lam / ratio), EXPLAINED * left, MOMENT * (lam / (lam + ratio)), MEAN_SQUARE * left
    return np.stack([part.sum(-1) for part in parts], -1).astype(float)


def test_they_are_the_sums_to_rounding_wherever_they_are_asked_for():
    sums = made()
    for low, high in ((-1, 1), (-3, 30), (-60, 60), (300, 301)):  # pieces are added on both sides
        x = RANDOM.uniform(low, high, size=(200, 2))
        found, expected = sums(torch.from_numpy(x)).numpy(), direct(x)
        np.testing.assert_allclose(found[..., [0, 1, 3]], expected[..., [0, 1, 3]], rtol=2e-13)
        np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-13 * np.abs(MOMENT).sum())


def test_slopes_are_those_of_the_sums():
    x = torch.from_numpy(RANDOM.uniform(-20, 20, size=(50, 2))).requires_grad_()
    weight = torch.from_numpy(RANDOM.normal(size=(50, 2, 4)))
    (slope,) = torch.autograd.grad((made()(x) * weight).sum(), x)
    lam = EIGENVALUES / np.exp(x.detach().numpy())[..., None]
    both = lam / (1 + lam) ** 2
    parts = -lam / (1 + lam), EXPLAINED * both, -MOMENT * both, MEAN_SQUARE * both
    expected = (np.stack([part.sum(-1) for part in parts], -1) * weight.numpy()).sum(-1)
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("number", [0, 1])
def test_few_eigenvalues_many_axes_and_numbers_that_are_none(number):
    sums = made(number)
    found = sums(torch.tensor([0.0, float("nan")], dtype=torch.float64).expand(3, 5, 2))
    assert found.shape == (3, 5, 2, 4)
    assert bool(found[..., 0, :].isfinite().all()) and bool(found[..., 1, :].isnan().all())
