"""Maximization and integration of smooth functions of one number, for many targets at once, to rounding.

An evaluation costs O(D), so the whole range can be scanned and no initial value is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_SCAN = 21  # grid points in the scan for a maximum
NUM_ZOOM = 33  # grid points in each scan for the support of a density
TAIL_NATS = 40.0  # log density below the maximum at which a density is cut off: below float64's rounding
NUM_NODES = 17  # quadrature nodes in the first rule
MAX_NODES = 2049  # quadrature nodes at which the refinement stops
MAX_STEPS = 100  # most iterations in one search
TOLERANCE = 1e-11  # relative change of an argument at which the search stops
MAX_ERROR = 1e-11  # largest change of the log of an integral, in nats, between a rule and its refinement


@dataclass(frozen=True)
class Maximum:
    """Maxima ``[n]``, and which of them lie at the lower and the upper end of the range."""

    argument: Tensor
    at_lower: Tensor
    at_upper: Tensor


def maximize(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Maximum:
    """Maximise n independent smooth functions of one number each, ``[..., n] -> [..., n]``, on ``[lower, upper]``.

    A scan of values and derivatives brackets the maximum, and the cubic through both ends of the bracket tells about where it is.
    From there the zero of the derivative is found by false position with the Illinois rule (superlinear, always bracketed): the
    argument is then accurate to rounding, where comparing function values would give only the square root of that.
    """
    grid = spaced(lower, upper, NUM_SCAN)
    values, grads = value_and_derivative(function, grid)
    values = values.nan_to_num(nan=-math.inf)
    best = values.argmax(0)
    rising = grads.gather(0, best[None])[0] > 0
    at_lower, at_upper = (best == 0) & ~rising, (best == NUM_SCAN - 1) & rising
    left = (best - (~rising).long()).clamp(0, NUM_SCAN - 2)
    (a, b), (value_a, value_b), (grad_a, grad_b) = (
        (part.gather(0, left[None])[0], part.gather(0, left[None] + 1)[0]) for part in (grid, values, grads)
    )
    point, was_rising = top_of_cubic(a, b, value_a, value_b, grad_a, grad_b), torch.zeros_like(rising)
    for _ in range(MAX_STEPS):
        grad = value_and_derivative(function, point)[1]
        rising = grad > 0
        # Illinois rule: halve the derivative at an end that is kept twice, so that this end moves next
        kept_twice = rising == was_rising
        grad_a, grad_b = (
            torch.where(rising, grad, torch.where(kept_twice, grad_a * 0.5, grad_a)),
            torch.where(rising, torch.where(kept_twice, grad_b * 0.5, grad_b), grad),
        )
        was_rising = rising
        a, b = torch.where(rising, point, a), torch.where(rising, b, point)
        secant = (a * grad_b - b * grad_a) / (grad_b - grad_a)
        # the secant leaves the bracket where the derivative has the same sign at both ends: bisect there
        proposal = torch.where((secant >= a) & (secant <= b), secant, (a + b) / 2)
        change, point = (proposal - point).abs(), torch.where(grad == 0, point, proposal)
        if bool(((change < TOLERANCE * (1 + point.abs())) | (grad == 0) | at_lower | at_upper).all()):
            break
    point = torch.where(at_lower, lower, torch.where(at_upper, upper, point))
    return Maximum(point, at_lower, at_upper)


def top_of_cubic(
    a: Tensor, b: Tensor, value_a: Tensor, value_b: Tensor, grad_a: Tensor, grad_b: Tensor
) -> Tensor:
    """The maximum of the cubic with these values and derivatives at a and b; the middle where it has none between them."""
    width = b - a
    chord = 3 * (value_b - value_a) / width - grad_a - grad_b
    root = (chord.square() - grad_a * grad_b).sqrt()
    share = 1 - (root - grad_b - chord) / (grad_a - grad_b + 2 * root)
    return a + width * torch.where((share > 0) & (share < 1), share, 0.5)


def value_and_derivative(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Values and derivatives ``[..., n]`` of n independent functions."""
    with torch.enable_grad():
        argument = point.detach().requires_grad_()
        values = function(argument)
        (slopes,) = torch.autograd.grad(values.sum(), argument)
    return values.detach(), slopes


@dataclass(frozen=True)
class Nodes:
    """Trapezoid rule for n densities over unbounded numbers ``u = center + width sinh(x)``, evenly spaced in x.

    The spacing in u grows with the distance from ``center``, so that a long tail beside a narrow peak needs no more
    nodes. ``error`` is the change of the log integral, in nats, by a finer rule.
    """

    center: Tensor
    width: Tensor
    low: Tensor
    high: Tensor
    num: int
    error: float = math.inf

    @classmethod
    def over(cls, low: Tensor, high: Tensor, center: Tensor, width: Tensor, num: int) -> Nodes:
        """Nodes from u = ``low`` to u = ``high``."""
        return cls(center, width, ((low - center) / width).asinh(), ((high - center) / width).asinh(), num)

    def points(self) -> tuple[Tensor, Tensor]:
        """Points u ``[M, n]`` and the logs of their weights ``[M, n]``."""
        x = spaced(self.low, self.high, self.num)
        log_step = ((self.high - self.low) / (self.num - 1)).log()
        return self.center + self.width * x.sinh(), self.width.log() + x.cosh().log() + log_step

    def __getitem__(self, index: Tensor) -> Nodes:
        """The rules of some of the densities."""
        parts = self.center[index], self.width[index], self.low[index], self.high[index]
        return Nodes(*parts, self.num, self.error)


@torch.no_grad()
def quadrature(
    log_density: Callable[[Tensor], Tensor],
    num: int,
    lower: float = -40.0,
    upper: float = 40.0,
    near: Nodes | None = None,
) -> Nodes:
    """Place nodes for integrals of n densities over one unbounded number each; ``log_density``: ``[M, n] -> [M, n]``.

    The trapezoid rule converges faster than any power of the step for smooth densities that vanish at both ends
    (Trefethen and Weideman 2014). The range is narrowed to where the log density is within 40 nats of its maximum, and
    the number of nodes is doubled until the logs of the integrals change by less than 1e-11. ``near`` is a rule for densities that
    may be alike: where it is found to be, it is moved, with twice as many nodes and no further look at its error.
    """
    moved = None if near is None else _moved(log_density, near)
    if moved is not None:
        return moved
    start = torch.zeros(num, dtype=torch.float64)
    low, high = start + lower, start + upper
    for _ in range(MAX_STEPS):
        new_low, new_high, *_ = _support(log_density, low, high)
        converged = bool((new_high - new_low > 0.5 * (high - low)).all())
        low, high = new_low, new_high
        if converged:
            break
    nodes = Nodes.over(low, high, *_peak(log_density, low, high), NUM_NODES)
    integral = _integral(log_density, nodes)
    while True:
        finer = replace(nodes, num=2 * nodes.num - 1)
        better = _integral(log_density, finer)
        error = float((better - integral).abs().max())
        rounding = 1e-14 * float(better.abs().max())
        if error < MAX_ERROR + rounding or finer.num > MAX_NODES:
            return replace(nodes, error=error)
        nodes, integral = finer, better


def _support(
    log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends of where the density matters, the rough mode, and whether it matters nowhere at the ends of the range."""
    grid = spaced(low, high, NUM_ZOOM)
    values = log_density(grid).nan_to_num(nan=-math.inf)
    keep = (values > values.amax(0) - TAIL_NATS).int()
    first, last = keep.argmax(0), NUM_ZOOM - 1 - keep.flip(0).argmax(0)
    new_low = grid.gather(0, (first - 1).clamp_min(0)[None])[0]
    new_high = grid.gather(0, (last + 1).clamp_max(NUM_ZOOM - 1)[None])[0]
    mode = grid.gather(0, values.argmax(0)[None])[0]
    return new_low, new_high, mode, (first > 0) & (last < NUM_ZOOM - 1)


def _moved(log_density: Callable[[Tensor], Tensor], near: Nodes) -> Nodes | None:
    """Nodes for densities like those of ``near``; None where they have moved too far from there."""
    low, high = (near.center + near.width * end.sinh() for end in (near.low, near.high))
    margin = (high - low) / 2
    low, high, mode, is_inside = _support(log_density, low - margin, high + margin)
    if not bool(is_inside.all()):
        return None
    return replace(Nodes.over(low, high, mode, near.width, 2 * near.num - 1), error=near.error)


def _peak(log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Rough mode and width of the peak; they only place the nodes, so their error does not enter the integral."""
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
