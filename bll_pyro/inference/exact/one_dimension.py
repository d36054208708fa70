"""Numerics of one unknown, for many targets at once: the highest point, and an integral, to rounding.

Densities here are smooth and cost O(D) to evaluate, so that a scan of the whole range is affordable and no starting
value has to be guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_SCAN = 21
NUM_ZOOM = 65
TAIL_NATS = 40.0  # what lies this far below the highest point is below the rounding of float64
NUM_NODES = 17
MAX_NODES = 2049
MAX_STEPS = 100
TOLERANCE = 1e-12  # of an argument, relative; the Illinois step after it is far smaller
MAX_ERROR = 1e-11  # of the log of an integral


@dataclass(frozen=True)
class Maximum:
    """Highest points ``[n]``, and which of them lie at an end of the range."""

    argument: Tensor
    at_lower: Tensor
    at_upper: Tensor


def maximize(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Maximum:
    """Maximise n independent smooth functions of one number each, ``[..., n] -> [..., n]``, on ``[lower, upper]``.

    A scan finds the highest stretch; there the zero of the derivative is found by false position with the Illinois
    rule (superlinear and always bracketed), so that the argument is good to rounding and not to its square root.
    """
    with torch.no_grad():
        grid = spaced(lower, upper, NUM_SCAN)
        values = function(grid).nan_to_num(nan=-math.inf)
    best = values.argmax(0)
    a = grid.gather(0, (best - 1).clamp_min(0)[None])[0]
    b = grid.gather(0, (best + 1).clamp_max(NUM_SCAN - 1)[None])[0]
    slope_a, slope_b = derivative(function, a), derivative(function, b)
    at_lower, at_upper = (best == 0) & (slope_a <= 0), (best == NUM_SCAN - 1) & (slope_b >= 0)
    point, rose = (a + b) / 2, torch.zeros_like(best, dtype=torch.bool)
    for _ in range(MAX_STEPS):
        chord = (a * slope_b - b * slope_a) / (slope_b - slope_a)
        # outside where the derivative has the same sign at both ends, or none
        inside = (chord > a) & (chord < b)
        proposal = torch.where(inside, chord, (a + b) / 2)
        slope_c = derivative(function, proposal)
        moved, point = (proposal - point).abs(), proposal
        rises = slope_c > 0
        # Illinois: an end that stays a second time counts half, so that it does not stay for ever
        again = rises == rose
        slope_a, slope_b = (
            torch.where(rises, slope_c, torch.where(again, slope_a * 0.5, slope_a)),
            torch.where(rises, torch.where(again, slope_b * 0.5, slope_b), slope_c),
        )
        rose = rises
        a, b = torch.where(rises, point, a), torch.where(rises, b, point)
        settled = (moved < TOLERANCE * (1 + point.abs())) | (slope_c == 0)
        if bool((settled | at_lower | at_upper).all()):
            break
    point = torch.where(at_lower, lower, torch.where(at_upper, upper, point))
    return Maximum(point, at_lower, at_upper)


def derivative(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Derivative ``[n]`` of n independent functions."""
    with torch.enable_grad():
        argument = point.detach().requires_grad_()
        (result,) = torch.autograd.grad(function(argument).sum(), argument)
    return result


@dataclass(frozen=True)
class Nodes:
    """Trapezoid rule for n densities over unbounded numbers ``u = center + width sinh(x)``, evenly spaced in x.

    Near ``center`` the points lie close, and further out ever wider, so that a narrow peak with a long tail needs no
    more of them than a peak alone.
    """

    center: Tensor
    width: Tensor
    low: Tensor
    high: Tensor
    num: int
    error: float = math.inf

    def points(self) -> tuple[Tensor, Tensor]:
        """Points u ``[M, n]`` and the logs of their weights ``[M, n]``."""
        x = spaced(self.low, self.high, self.num)
        log_step = ((self.high - self.low) / (self.num - 1)).log()
        return self.center + self.width * x.sinh(), self.width.log() + x.cosh().log() + log_step


@torch.no_grad()
def quadrature(
    log_density: Callable[[Tensor], Tensor], num: int, lower: float = -40.0, upper: float = 40.0
) -> Nodes:
    """Place nodes for integrals of n densities over one unbounded number each; ``log_density``: ``[M, n] -> [M, n]``.

    The trapezoid rule converges faster than any power of the step for smooth densities that vanish at both ends
    (Trefethen and Weideman 2014). The range is narrowed to where the density is within 40 nats of its highest point,
    and the number of nodes doubled until the logs of the integrals change by less than 1e-11.
    """
    start = torch.zeros(num, dtype=torch.float64)
    low, high = start + lower, start + upper
    for _ in range(MAX_STEPS):
        grid = spaced(low, high, NUM_ZOOM)
        values = log_density(grid).nan_to_num(nan=-math.inf)
        keep = (values > values.amax(0) - TAIL_NATS).int()
        first, last = keep.argmax(0), NUM_ZOOM - 1 - keep.flip(0).argmax(0)
        new_low = grid.gather(0, (first - 1).clamp_min(0)[None])[0]
        new_high = grid.gather(0, (last + 1).clamp_max(NUM_ZOOM - 1)[None])[0]
        settled = bool((new_high - new_low > 0.5 * (high - low)).all())
        low, high = new_low, new_high
        if settled:
            break
    mode, width = _peak(log_density, low, high)
    nodes = Nodes(mode, width, ((low - mode) / width).asinh(), ((high - mode) / width).asinh(), NUM_NODES)
    integral = _integral(log_density, nodes)
    while True:
        finer = replace(nodes, num=2 * nodes.num - 1)
        better = _integral(log_density, finer)
        error = float((better - integral).abs().max())
        rounding = 1e-14 * float(better.abs().max())
        if error < MAX_ERROR + rounding or finer.num > MAX_NODES:
            return replace(nodes, error=error)
        nodes, integral = finer, better


def _peak(log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Where the density is highest, and how wide the peak is there, roughly: nodes are placed by them, no more."""
    widest = high - low
    for _ in range(3):
        grid = spaced(low, high, NUM_ZOOM)
        best = log_density(grid).nan_to_num(nan=-math.inf).argmax(0).clamp(1, NUM_ZOOM - 2)
        low, mode, high = (grid.gather(0, (best + i)[None])[0] for i in (-1, 0, 1))
        step = high - mode
    values = log_density(torch.stack([mode - 8 * step, mode, mode + 8 * step]))
    curvature = (2 * values[1] - values[0] - values[2]) / (8 * step).square()
    return mode, 2 * torch.maximum(curvature, widest**-2).rsqrt()


def _integral(log_density: Callable[[Tensor], Tensor], nodes: Nodes) -> Tensor:
    points, log_weights = nodes.points()
    return (log_density(points) + log_weights).logsumexp(0)


def spaced(low: Tensor, high: Tensor, num: int) -> Tensor:
    """``num`` evenly spaced points from ``low [n]`` to ``high [n]``: ``[num, n]``."""
    share = torch.linspace(0, 1, num, dtype=low.dtype)[:, None]
    return low + share * (high - low)
