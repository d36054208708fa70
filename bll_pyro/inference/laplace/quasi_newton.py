"""Maximisation of an expensive smooth function by the BFGS quasi-Newton method (Nocedal and Wright 2006, 6.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EVALUATIONS = 60  # most evaluations of the function
MAX_STEP = 2.0  # largest step of any coordinate; the coordinates are logarithms
MIN_STEP = 2.0**-10  # smallest factor of a step in the line search


@dataclass(frozen=True, eq=False)
class Optimum[Point]:
    """The result of a search.

    Parameters
    ----------
    argument
        The best argument, ``[M]``.
    point
        What ``evaluate`` returned besides value and gradient at the best argument.
    values, arguments
        Value and argument of each evaluation.
    distance
        Remaining distance from the optimum, ``sqrt(g' B^-1 g)`` with the gradient g and the estimated curvature B.
    converged
        Whether the distance is within the tolerance.
    bounds
        Lower and upper bounds, ``[M]`` each.
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
        """Whether each coordinate is at its lower bound, ``[M]``."""
        return self.argument <= self.bounds[0]

    @property
    def at_upper(self) -> Tensor:
        """Whether each coordinate is at its upper bound, ``[M]``."""
        return self.argument >= self.bounds[1]


def quasi_newton_ascent[Point](
    evaluate: Callable[[Tensor], tuple[float, Tensor, Point]],
    start: Tensor,
    curvature: Tensor,
    tolerance: float,
    bounds: tuple[Tensor, Tensor],
    rounding: Callable[[Point], float] = lambda point: 0.0,
) -> Optimum[Point]:
    """Maximise a function from ``start [M]``.

    Parameters
    ----------
    evaluate
        Returns value, gradient ``[M]`` and any third object, which is kept for the optimum.
    curvature
        Initial estimate of the negative Hessian, ``[M, M]``.
    tolerance
        Distance at which the search stops.
    bounds
        Lower and upper bound of every coordinate.
    rounding
        Rounding error of the value at a point.
    """
    argument = start
    value, gradient, point = evaluate(argument)
    values, arguments = [value], [argument]
    while True:
        free_gradient = inside(gradient, argument, bounds)
        step = torch.linalg.solve(curvature, free_gradient)
        distance = math.sqrt(max(float(free_gradient @ step), 0.0))
        if distance <= tolerance or len(values) >= MAX_EVALUATIONS:
            break
        step = step * min(1.0, MAX_STEP / float(step.abs().max()))
        size, accepted = 1.0, False
        while not accepted and size >= MIN_STEP and len(values) < MAX_EVALUATIONS:
            proposal = torch.minimum(torch.maximum(argument + size * step, bounds[0]), bounds[1])
            new_value, new_gradient, new_point = evaluate(proposal)
            values.append(new_value)
            arguments.append(proposal)
            change, gradient_change = proposal - argument, gradient - new_gradient
            rise = float(gradient @ change)
            if float(change @ gradient_change) > 0:
                curvature = updated(curvature, change, gradient_change)
            accepted = math.isfinite(new_value) and new_value >= value + 1e-4 * rise - rounding(new_point)
            # the maximum of the parabola through both values and the gradient, within [0.1, 0.5] of the step
            drop = value + rise - new_value
            size *= min(max(0.5 * rise / drop, 0.1), 0.5) if math.isfinite(drop) and drop > 0 else 0.1
        if not accepted:
            break
        argument, value, gradient, point = proposal, new_value, new_gradient, new_point
    return Optimum(argument, point, values, arguments, distance, distance <= tolerance, bounds)


def inside(gradient: Tensor, argument: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient, 0 in coordinates at a bound where it points outside."""
    outward = ((argument <= bounds[0]) & (gradient < 0)) | ((argument >= bounds[1]) & (gradient > 0))
    return torch.where(outward, 0.0, gradient)


def updated(curvature: Tensor, change: Tensor, gradient_change: Tensor) -> Tensor:
    """The update of Broyden, Fletcher, Goldfarb and Shanno: the new curvature maps ``change`` to ``gradient_change``."""
    image = curvature @ change
    return (
        curvature
        - torch.outer(image, image) / (change @ image)
        + torch.outer(gradient_change, gradient_change) / (change @ gradient_change)
    )
