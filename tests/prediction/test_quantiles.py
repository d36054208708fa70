"""Quantiles of mixtures against SciPy's root finding, closed forms, and order statistics; and how many steps they take."""

from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from bll_pyro.prediction.quantiles import mixture_cdf, mixture_quantile, secant_root

Q = (1e-4, 0.05, 0.5, 0.95, 0.9999)
F64 = torch.float64


def normals(loc: list[float], scale: list[float], shares: list[float]) -> tuple[dist.Normal, Tensor]:
    """Mixtures ``[S, 3, 1]``, of which the later rows lie elsewhere on other scales."""
    rows = torch.tensor([1.0, 1e-4, 1e3], dtype=F64)[None, :, None]
    parts = [torch.tensor(values, dtype=F64)[:, None, None] * rows for values in (loc, scale)]
    weights = torch.tensor(shares, dtype=F64)[:, None, None]
    return dist.Normal(parts[0] + 7 * rows, parts[1]), weights / weights.sum()


MIXTURES = {
    "one": normals([0.3], [0.7], [1]),
    "scales": normals([0.0] * 5, [0.3, 0.5, 0.6, 0.8, 1.1], [1, 2, 3, 2, 1]),
    "skew": normals([-1.0, 0.0, 2.0], [0.2, 0.5, 1.5], [5, 3, 1]),
    "far apart": normals([-50.0, 50.0, 60.0], [0.1, 0.2, 1.0], [2, 1, 1]),
    "a needle": normals([0.0, 3.0], [1.0, 1e-5], [1, 1]),
    "heavy": normals([0.0] * 3, [0.01, 1.0, 100.0], [90, 9, 1]),
}


def close(found: float, expected: float, steps: int, kind: type[np.floating]) -> bool:
    """Whether two numbers are so many steps apart at most."""
    return abs(found - expected) <= steps * np.spacing(kind(abs(expected)))


@pytest.mark.parametrize("name", MIXTURES)
def test_quantiles_are_those_of_scipy(name: str) -> None:
    parts, weights = MIXTURES[name]
    loc, scale, shares = (values.numpy() for values in (parts.loc, parts.scale, weights[:, 0, 0]))
    for q in Q:
        found = mixture_quantile(parts, q, parts.mean.mean(0), weights).numpy()
        single = dist.Normal(parts.loc.float(), parts.scale.float())
        rough = mixture_quantile(single, q, single.mean.mean(0), weights.float()).numpy()
        for row in range(3):
            a, s = loc[:, row, 0], scale[:, row, 0]

            def miss(x: float, a: np.ndarray = a, s: np.ndarray = s, q: float = q) -> float:
                return float(shares @ scipy.stats.norm.cdf(x, a, s)) - q

            ends = (a - 10 * s).min(), (a + 10 * s).max()
            expected = scipy.optimize.brentq(miss, *ends, xtol=1e-300, rtol=1e-15)
            # as near as numbers tell: neighbours of x, or of F, which is flat between modes and steep in a needle
            assert close(found[row, 0], expected, 4, np.float64) or abs(miss(found[row, 0])) <= 1e-14
            assert close(rough[row, 0], expected, 10, np.float32) or abs(miss(float(rough[row, 0]))) <= 1e-6


def counted(cdf: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """A function, and a list that grows by one with every call."""
    calls: list[int] = []

    def call(x: Tensor) -> Tensor:
        calls.append(len(calls))
        return cdf(x)

    return call, calls


@pytest.mark.parametrize(("name", "most"), [("one", 2), ("scales", 8), ("skew", 12), ("far apart", 100)])
def test_few_steps_are_taken(name: str, most: int) -> None:
    """Bisection takes 60; what a prediction of real values has is ``scales``."""
    parts, weights = MIXTURES[name]
    mean = (parts.loc * weights).sum(0)
    scale = ((parts.variance + (parts.loc - mean).square()) * weights).sum(0).sqrt()
    for q in Q:
        cdf, calls = counted(mixture_cdf(parts, weights))
        secant_root(cdf, q, mean, scale)
        assert len(calls) <= most


def test_without_moments() -> None:
    """Of the Cauchy distribution, whose quantile is a tangent."""
    parts = dist.Cauchy(torch.zeros(1, 2, 1, dtype=F64), torch.tensor([1.0, 5.0], dtype=F64)[None, :, None])
    for q in Q:
        found = mixture_quantile(parts, q, torch.full((2, 1), torch.nan, dtype=F64))
        expected = np.tan(np.pi * (q - 0.5)) * np.array([1.0, 5.0])
        assert np.allclose(found[:, 0].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_distribution_function_of_draws() -> None:
    """Steps and flat pieces between them: the order statistic at which F passes ``q``."""
    draws = torch.randn(501, generator=torch.Generator().manual_seed(0), dtype=F64).exp().sort().values
    start, scale = torch.tensor([[0.0], [9.0]], dtype=F64), torch.tensor([[1.0], [1e3]], dtype=F64)
    for q in (0.01, 0.5, 0.953):
        found = secant_root(lambda x: (draws <= x[..., None]).double().mean(-1), q, start, scale)
        expected = draws[int(np.ceil(q * 501)) - 1]
        assert torch.allclose(found, expected.expand_as(found), rtol=0, atol=1e-11)
