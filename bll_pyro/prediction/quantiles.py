"""Averages, distribution function and quantiles of mixtures.

A mixture is a distribution with batch shape ``[S, n, T]`` of components, which are equally likely or have ``weights``
``[S, 1, T]``.

=============== ================================================================================================
on paper        in code
=============== ================================================================================================
``F(x)``        ``mixture_cdf``
``F^-1(q)``     ``mixture_quantile``: ``F(x) = q`` by ``secant_root``, of whole numbers by ``bisect``
=============== ================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

NUM_BISECTIONS = 60
NUM_STEPS = 150  # evaluations of F in one solution; 4 to 6 do for mixtures of Normals
PATIENCE = 6  # evaluations after which every second one halves the bracket
NARROW = 0.4  # brackets of whole numbers

FunctionOfOutputs = Callable[[Tensor], Tensor]


def average(values: Float[Tensor, "M *#N"], weights: Float[Tensor, "M *#N"] | None) -> Float[Tensor, " *#N"]:
    """Mean over the components of ``values [S, n, T]``."""
    return values.mean(0) if weights is None else (values * weights).sum(0)


def mixture_cdf(parts: dist.Distribution, weights: Tensor | None) -> FunctionOfOutputs:
    """Distribution function of the mixture, ``[n, T]`` to ``[n, T]``."""
    if type(parts) is not dist.Normal:
        return lambda values: average(parts.cdf(values), weights)
    factor = parts.scale.reciprocal() * math.sqrt(0.5)
    loc = parts.loc[:1] if parts.loc.stride(0) == 0 else parts.loc  # often all components have one mean

    def cdf(values: Tensor) -> Tensor:
        """As above, without the temporaries of ``Normal.cdf``, which take longer than the function itself."""
        return average(((values - loc) * factor).erf_(), weights) / 2 + 0.5

    return cdf


def mixture_quantile(
    parts: dist.Distribution,
    q: float,
    start: Float[Tensor, "N T"],
    weights: Float[Tensor, "M 1 T"] | None = None,
    narrow: float = 0.0,
) -> Float[Tensor, "N T"]:
    """Where the mixture's distribution function reaches ``q``, searched from ``start`` ``[n, T]`` on.

    ``narrow``: width of brackets that are narrow enough, of whole numbers; below 1/2, so that they are the nearest one.
    """
    cdf = mixture_cdf(parts, weights)
    spread = (parts.mean - average(parts.mean, weights)).square()
    width = average(parts.variance + spread, weights).sqrt().clamp_min(1e-12).expand_as(start)
    # tails so heavy that there are no moments: begin anywhere
    width, start = (torch.where(width.isfinite(), width, 1.0), start.nan_to_num(0.0, 0.0, 0.0))
    if not narrow:
        return secant_root(cdf, q, start, width)
    lower, upper = start - width, start + width
    for _ in range(NUM_BISECTIONS):
        too_high, too_low = cdf(lower) > q, cdf(upper) < q
        if not bool((too_high | too_low).any()):
            break
        width = width * 2
        lower, upper = torch.where(too_high, lower - width, lower), torch.where(too_low, upper + width, upper)
    return bisect(lambda x: cdf(x) < q, lower, upper, NUM_BISECTIONS, narrow)


def secant_root(
    cdf: FunctionOfOutputs, q: float, mean: Float[Tensor, "N T"], scale: Float[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    r"""Solve ``F(x) = q`` by the secant rule for :math:`\Phi^{-1}(F(x))`, kept inside of brackets.

    This function is a straight line for a Normal, and nearly one for a mixture of Normals of about the same scale; the first
    guess is the quantile of the Normal with the moments ``mean`` and ``scale``. A step that leaves the bracket is replaced by the
    middle, and after ``PATIENCE`` steps every second one is, so that flat pieces and jumps of F take at most twice the steps of
    bisection.
    """
    eps, tiny = torch.finfo(mean.dtype).eps, torch.finfo(mean.dtype).tiny
    goal = NormalDist().inv_cdf(q)
    x, slope, reach = mean + goal * scale, scale, 2 * scale
    lower, upper = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
    earlier = level_there = x
    moving = torch.ones_like(x, dtype=torch.bool)
    for step in range(NUM_STEPS):
        reached = cdf(x)
        is_below = reached < q
        lower, upper = torch.where(is_below, x, lower), torch.where(is_below, upper, x)
        level = torch.special.ndtri(reached.clamp(tiny, 1 - eps / 2))
        if step:
            secant = (x - earlier) / (level - level_there)
            slope = torch.where(secant.isfinite() & (secant > 0), secant, slope)
        move = slope * (goal - level)
        new, middle = x + move, (lower + upper) / 2
        leaves = (new <= lower) | (new >= upper) | (step >= PATIENCE and step % 2 == 0)
        new = torch.where(leaves & middle.isfinite(), middle, x + torch.clamp(move, -reach, reach))
        smallest = 2 * eps * (x.abs() + scale)
        earlier, level_there, reach = x, level, 2 * reach
        moving = moving & ((reached - q).abs() > eps) & (upper - lower > smallest)
        x = torch.where(moving, new, x)
        moving = moving & ((new - earlier).abs() > smallest)
        if not bool(moving.any()):
            break
    return x


def bisect(
    left_of: FunctionOfOutputs,
    lower: Float[Tensor, "N T"],
    upper: Float[Tensor, "N T"],
    num_steps: int,
    narrow: float = 0.0,
) -> Float[Tensor, "N T"]:
    """Halve brackets ``num_steps`` times, or until all are narrow or as narrow as numbers allow.

    ``left_of`` is true where the solution is larger.
    """
    for _ in range(num_steps):
        middle = (lower + upper) / 2
        if bool(((middle == lower) | (middle == upper) | (upper - lower < narrow)).all()):
            break
        below = left_of(middle)
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return (lower + upper) / 2
