"""Intervals and scores of mixtures, from their own distribution function: no moments are matched.

========================= ======================================================================
on paper                  in code
========================= ======================================================================
shortest ``[l, u]``       ``shortest_interval``: a grid, then ``f(l) = f(u)`` by bisection
shortest ``{l, ..., u}``  ``shortest_range``, for whole numbers
CRPS                      ``mixture_crps``: ``F^2`` below y and ``(1 - F)^2`` above, by quadrature
========================= ======================================================================
"""

from __future__ import annotations

import itertools

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.likelihoods.derived import bounds
from bll_pyro.prediction.quantiles import (
    NARROW,
    NUM_BISECTIONS,
    FunctionOfOutputs,
    average,
    bisect,
    mixture_cdf,
    mixture_quantile,
)

NUM_GRID = 129
NUM_STEPS = 24  # bisections of the lower end, from one step of the grid on
NUM_NODES = 16
MAX_VALUES = 1024  # of a count that are looked at one by one
NUM_TERMS = 128  # steps over the range of a count
TAIL = 1e-6  # probability on either side of that range
BREAKS = (1e-4, 0.02, 0.25, 0.75, 0.98, 1 - 1e-4)  # quantiles between which F is smooth enough for few nodes


def shortest_interval(
    parts: dist.Distribution,
    prob: float,
    start: Float[Tensor, "N T"],
    weights: Float[Tensor, "M 1 T"] | None = None,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Shortest interval ``[n, T]`` with probability ``prob``: of a mixture with one mode that of highest density.

    Among all lower ends on a grid the best is taken; around it the densities at both ends are made equal, or an end is that
    of the support.
    """
    cdf, tail = mixture_cdf(parts, weights), (1 - prob) / 50
    least, most = ends_of_support(parts, start)
    low = mixture_quantile(parts, tail, start, weights)
    high = mixture_quantile(parts, 1 - tail, start, weights)
    grid = low + (high - low) * torch.linspace(0, 1, NUM_GRID).to(low).view(-1, 1, 1)
    table = torch.stack([cdf(points) for points in grid])
    step = (high - low) / (NUM_GRID - 1)

    def upper_of(reached: Tensor) -> Tensor:
        """The point at which F is ``reached``, by interpolation on the grid."""
        flat = table.movedim(0, -1).contiguous()
        wanted = reached.movedim(0, -1).contiguous() if reached.dim() == 3 else reached[..., None]
        index = torch.searchsorted(flat, wanted).clamp(1, NUM_GRID - 1)
        left, right = flat.gather(-1, index - 1), flat.gather(-1, index)
        share = ((wanted - left) / (right - left).clamp_min(1e-30)).clamp(0, 1)
        found = low[..., None] + step[..., None] * (index - 1 + share)
        return found.movedim(-1, 0) if reached.dim() == 3 else found.squeeze(-1)

    ends = upper_of((table + prob).clamp_max(1.0))
    width = torch.where(table + prob <= table[-1], ends - grid, torch.inf)
    best = width.argmin(0, keepdim=True)
    nearest = grid.gather(0, best)[0]

    def density(values: Tensor) -> Tensor:
        return average(parts.log_prob(values).exp(), weights)

    def matching(lower: Tensor) -> Tensor:
        """Upper end for a lower one, by Newton steps from the grid's, within the support."""
        reached = cdf(lower) + prob
        upper = upper_of(reached.clamp_max(1.0))
        for _ in range(3):
            move = (reached - cdf(upper)) / density(upper).clamp_min(1e-30)
            upper = torch.minimum(upper + move.clamp(-step, step), most)
        return upper

    def left_of(lower: Tensor) -> Tensor:
        """Whether the best lower end is larger, and leaves enough above it."""
        return (density(lower) < density(matching(lower))) & (cdf(lower) + prob < 1)

    lower = bisect(left_of, torch.maximum(nearest - step, least), nearest + step, NUM_STEPS)
    return lower, matching(lower)


def ends_of_support(parts: dist.Distribution, like: Float[Tensor, "N T"]) -> tuple[Tensor, Tensor]:
    """Least and largest value ``[n, T]`` that any component may take; infinite without bounds."""
    lower, upper = (torch.as_tensor(end).to(like) for end in bounds(parts))
    lower, upper = (
        (lower.amin(0) if lower.dim() == 3 else lower),
        (upper.amax(0) if upper.dim() == 3 else upper),
    )
    return lower.expand_as(like), upper.expand_as(like)


def shortest_range(
    parts: dist.Distribution,
    prob: float,
    start: Float[Tensor, "N T"],
    weights: Float[Tensor, "M 1 T"] | None = None,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Fewest neighbouring whole numbers ``[n, T]`` with probability ``prob`` or more; of equals the most probable ones.

    Where more than ``MAX_VALUES`` have to be looked at, they begin where the shortest interval of real numbers does.
    """
    cdf, tail = mixture_cdf(parts, weights), (1 - prob) / 50
    low = mixture_quantile(parts, tail, start, weights, NARROW).round()
    high = mixture_quantile(parts, 1 - tail, start, weights, NARROW).round()
    is_wide = high - low >= MAX_VALUES
    num_values = int((high - low).where(~is_wide, 0.0).max()) + 1
    table = torch.stack([cdf(low + k - 1) for k in range(num_values + 1)], -1)  # F(low - 1), F(low), ...
    below = table[..., :-1].contiguous()
    last = torch.searchsorted(table.contiguous(), below + prob * (1 - 1e-6))
    enough = last <= num_values
    last = last.clamp_max(num_values)
    size = last - torch.arange(num_values, device=last.device)
    # a size is a whole number and the probability at most 1: it only decides between equals
    score = torch.where(enough, size - (table.gather(-1, last) - below), torch.inf)
    first = score.argmin(-1, keepdim=True)
    lower, upper = low + first.squeeze(-1), low + last.gather(-1, first).squeeze(-1) - 1
    if bool(is_wide.any()):
        begin = shortest_interval(parts, prob, start, weights)[0].round()
        reached = cdf(begin - 1) + prob
        end = bisect(lambda x: cdf(x) < reached, begin, 2 * high - low, NUM_BISECTIONS, NARROW).round()
        lower, upper = torch.where(is_wide, begin, lower), torch.where(is_wide, end, upper)
    return lower, upper


def mixture_crps(
    parts: dist.Distribution,
    targets: Float[Tensor, "N T"],
    start: Float[Tensor, "N T"],
    weights: Float[Tensor, "M 1 T"] | None = None,
) -> Float[Tensor, "N T"]:
    """``integral of (F(x) - [x >= y])^2`` ``[n, T]``, by Gauss-Legendre quadrature between quantiles and the target."""
    cdf = mixture_cdf(parts, weights)
    breaks = [mixture_quantile(parts, q, start, weights) for q in BREAKS]
    far = breaks[-1] - breaks[0]  # beyond the outermost quantiles the integrand is nearly 0, or nearly 1
    ends = torch.stack([breaks[0] - far, *breaks, breaks[-1] + far, targets]).sort(0).values
    nodes, shares = (torch.as_tensor(v).to(targets) for v in np.polynomial.legendre.leggauss(NUM_NODES))
    total = torch.zeros_like(targets)
    for left, right in itertools.pairwise(ends):
        half = (right - left) / 2
        for node, share in zip(nodes, shares, strict=True):
            at = left + half * (1 + node)
            reached = cdf(at)
            total += share * half * torch.where(at < targets, reached, 1 - reached).square()
    return total


def count_crps(
    parts: dist.Distribution,
    targets: Float[Tensor, "N T"],
    start: Float[Tensor, "N T"],
    weights: Float[Tensor, "M 1 T"] | None = None,
) -> Float[Tensor, "N T"]:
    r"""``sum over k of (F(k) - [k >= y])^2`` ``[n, T]`` for counts.

    Outside the range of the counts with probability each term is 0 or 1. Inside, the sums above and below the target y are
    taken in steps of h, so that there are ``NUM_TERMS`` of them or fewer (Lubbock's formula, with differences for derivatives):

    .. math::
        \sum_{k \ge 0} v(k) \approx h \sum_{j \ge 0} v(j h) - \frac{h - 1}{2} v(0)
            + \frac{h^2 - 1}{12} v'(0) - \frac{h^4 - 1}{720} v^{(3)}(0),

    which is the sum itself for h = 1.
    """
    cdf = mixture_cdf(parts, weights)
    low = mixture_quantile(parts, TAIL, start, weights, NARROW).round() - 1
    high = mixture_quantile(parts, 1 - TAIL, start, weights, NARROW).round() + 1
    inside = targets.clamp(low, high)
    step = ((high - low) / NUM_TERMS).ceil().clamp_min(1.0)

    def total(terms: FunctionOfOutputs, first: Tensor, sign: int, num_steps: Tensor) -> Tensor:
        """Sum of terms from ``first`` on, upwards or downwards."""
        values = [terms(first + sign * j * step) for j in range(max(4, int(num_steps.max()) + 1))]
        slope = (-11 * values[0] + 18 * values[1] - 9 * values[2] + 2 * values[3]) / (6 * step)
        third = (values[3] - 3 * values[2] + 3 * values[1] - values[0]) / step**3
        ends = (step - 1) / 2 * values[0] - (step**2 - 1) / 12 * slope + (step**4 - 1) / 720 * third
        return step * sum(values) - ends

    below = total(lambda k: cdf(k).square(), inside - 1, -1, (inside - low) / step)
    above = total(lambda k: (1 - cdf(k)).square(), inside, 1, (high - inside) / step)
    return below + above + (targets - inside).abs()
