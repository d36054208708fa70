"""Squares of a Normal over equally probable strata: expectations of log densities with a pole, without noise."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache(maxsize=16)
def stratum_moments(num_strata: int) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
    """Mean and mean square ``[J]`` of a standard normal within each of J intervals of equal probability."""
    cuts = torch.special.ndtri(torch.arange(1, num_strata, dtype=torch.float64) / num_strata)
    density = torch.exp(-0.5 * cuts.square()) / math.sqrt(2 * math.pi)
    zero = cuts.new_zeros(1)
    ends, weighted = torch.cat([zero, density, zero]), torch.cat([zero, cuts * density, zero])
    return -num_strata * ends.diff(), 1 - num_strata * weighted.diff()


def stratified_square(
    loc: Float[Tensor, " *#S"], scale: Float[Tensor, " *#S"], num_strata: int = 8
) -> Float[Tensor, "J *#S"]:
    """``E[w^2 | stratum j]`` for ``w ~ Normal(loc, scale^2)``: ``[J, ...]`` for arguments ``[...]``.

    For a function g that is convex in the square, as the log density of a scale mixture of Normals is, Jensen's
    inequality within each stratum gives ``mean_j g(E[w^2 | j]) <= E[g(w^2)]``. The bound is smooth where g has a pole
    at 0 (a stratum never has square 0), and it tightens as the strata narrow: one stratum is classical mean field
    with the best distribution of the mixing scale; infinitely many integrate the scale out.
    """
    mean, square = (moment.to(loc) for moment in stratum_moments(num_strata))
    shape = (num_strata, *([1] * loc.dim()))
    return loc.square() + 2 * loc * scale * mean.view(shape) + scale.square() * square.view(shape)
