"""Maximisation of a smooth function that is dear to evaluate, by a quasi-Newton method (Nocedal and Wright 2006, 6.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EVALUATIONS = 60
MAX_STEP = 2.0  # of any coordinate; these are logs
MIN_STEP = 2.0**-10


@dataclass(frozen=True, eq=False)
class Optimum[Point]:
    """Where the climb ended.

    Parameters
    ----------
    argument
        ``[M]``.
    point
        What was found there besides.
    values
        Function values on the way.
    arguments
        And where.
    distance
        ``sqrt(g' B^-1 g)`` with the slope g and the estimated curvature B: how far the optimum still is.
    converged
        Whether that is within the tolerance.
    bounds
        Lower and upper ends ``[M]``.
    """

    argument: Tensor
    point: Point
    values: list[float]
    arguments: list[Tensor]
    distance: float
    converged: bool
    bounds: tuple[Tensor, Tensor]

    @property
    def at_lower(self) -> Tensor:
        """Coordinates that ended at their lower end, ``[M]``."""
        return self.argument <= self.bounds[0]

    @property
    def at_upper(self) -> Tensor:
        """Coordinates that ended at their upper end, ``[M]``."""
        return self.argument >= self.bounds[1]


def quasi_newton_ascent[Point](
    evaluate: Callable[[Tensor], tuple[float, Tensor, Point]],
    start: Tensor,
    curvature: Tensor,
    tolerance: float,
    bounds: tuple[Tensor, Tensor],
    rounding: Callable[[Point], float] = lambda point: 0.0,
) -> Optimum[Point]:
    """Climb from ``start [M]``; ``evaluate`` gives value, slope ``[M]`` and anything else.

    Parameters
    ----------
    curvature
        First guess of the negative Hessian at the optimum, ``[M, M]``.
    tolerance
        Distance that will do.
    bounds
        Lower and upper end of every coordinate.
    rounding
        By how much the value at a point may be wrong.
    """
    argument = start
    value, slope, point = evaluate(argument)
    values, arguments = [value], [argument]
    while True:
        slope_inside = inside(slope, argument, bounds)
        step = torch.linalg.solve(curvature, slope_inside)
        distance = math.sqrt(max(float(slope_inside @ step), 0.0))
        if distance <= tolerance or len(values) >= MAX_EVALUATIONS:
            break
        step = step * min(1.0, MAX_STEP / float(step.abs().max()))
        size, accepted = 1.0, False
        while not accepted and size >= MIN_STEP and len(values) < MAX_EVALUATIONS:
            moved = torch.minimum(torch.maximum(argument + size * step, bounds[0]), bounds[1])
            new_value, new_slope, new_point = evaluate(moved)
            values.append(new_value)
            arguments.append(moved)
            change, slope_change = moved - argument, slope - new_slope
            rise = float(slope @ change)
            if float(change @ slope_change) > 0:
                curvature = updated(curvature, change, slope_change)
            accepted = math.isfinite(new_value) and new_value >= value + 1e-4 * rise - rounding(new_point)
            # the vertex of the parabola through both values and the slope, within reason
            drop = value + rise - new_value
            size *= min(max(0.5 * rise / drop, 0.1), 0.5) if math.isfinite(drop) and drop > 0 else 0.1
        if not accepted:
            break
        argument, value, slope, point = moved, new_value, new_slope, new_point
    return Optimum(argument, point, values, arguments, distance, distance <= tolerance, bounds)


def inside(slope: Tensor, argument: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """The slope without what points out of the bounds."""
    outward = ((argument <= bounds[0]) & (slope < 0)) | ((argument >= bounds[1]) & (slope > 0))
    return torch.where(outward, 0.0, slope)


def updated(curvature: Tensor, change: Tensor, slope_change: Tensor) -> Tensor:
    """The update of Broyden, Fletcher, Goldfarb and Shanno: the new curvature maps ``change`` to ``slope_change``."""
    image = curvature @ change
    return (
        curvature
        - torch.outer(image, image) / (change @ image)
        + torch.outer(slope_change, slope_change) / (change @ slope_change)
    )
