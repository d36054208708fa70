"""Quasi-random standard normals: one small fixed set of points, shared by all rows; averages over it, and their errors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.scope import generator

MAX_SOBOL_DIM = torch.quasirandom.SobolEngine.MAXDIM


@lru_cache(maxsize=32)
def normal_points(num_points: int, dim: int, seed: int = 0, skip: int = 0) -> Float[Tensor, "S R"]:
    """Return ``[S, dim]`` scrambled Sobol points pushed through the normal quantile function (Owen 1998).

    An average over them has an error near 1/S for smooth integrands, where random draws have 1/sqrt(S). Powers of
    two balance best. The result is cached: do not change it in place. In more dimensions than there
    are tables of Sobol numbers for, the points are pseudo-random: a quasi-random set has no advantage there.

    ``skip`` leaves out the first dimensions. Two sets are used together only if they lie in different dimensions: in the
    same ones they would be copies of each other and not independent.
    """
    if num_points < 1 or dim < 0:
        raise ValueError(f"expected num_points >= 1 and dim >= 0, got {num_points} and {dim}")
    if dim == 0:
        return torch.zeros(num_points, 0)
    if skip + dim > MAX_SOBOL_DIM:
        return torch.randn(num_points, dim, generator=generator(seed))
    uniform = torch.quasirandom.SobolEngine(skip + dim, scramble=True, seed=seed).draw(
        num_points, dtype=torch.float64
    )
    uniform = uniform[:, skip:]
    # the scrambled points are multiples of 2^-30 and may be 0; half a cell keeps the quantile finite
    tiny = 2.0**-31
    return torch.special.ndtri(uniform.clamp(tiny, 1 - tiny)).float()


def normal_grid(num_points: int, step: float) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Points ``[S]`` a step apart, symmetric about 0 and of unit variance, and their weights, of sum 1: the trapezoidal rule.

    For an integrand that is analytic in a strip around the real line its error falls exponentially with 1 / step (Trefethen and
    Weideman 2014): for ``log(1 + exp f)`` with a standard deviation of 2 of f, 24 points 0.45 apart err by 2.5e-7 nats, 128
    quasi-random ones by 1.7e-3.
    """
    points = (torch.arange(num_points, dtype=torch.float64) - (num_points - 1) / 2) * step
    weights = torch.softmax(-0.5 * points.square(), 0)
    return points / (weights @ points.square()).sqrt(), weights


def halves(values: Float[Tensor, "S *N"]) -> tuple[Float[Tensor, " *N"], Float[Tensor, " *N"]]:
    """Mean over the points ``[S, ...]``, and an estimate of its error: half the distance of the means over two halves.

    For independent draws its mean square is the variance of the mean. Two halves of a Sobol set are such sets
    themselves, and their errors cancel in part when they are joined: there the estimate is on the safe side.
    """
    if len(values) < 2:
        return values.mean(0), torch.full_like(values[0], float("nan"))
    middle = len(values) // 2
    first, second = values[:middle].mean(0), values[middle:].mean(0)
    return torch.lerp(second, first, middle / len(values)), (first - second).abs() / 2


def joined(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Three answers for all rows, from those for some rows each."""
    first, second, third = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second), torch.cat(third)
