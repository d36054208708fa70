"""The posterior mode of the weights: Newton's method with conjugate gradients (Nocedal and Wright 2006, 7.1).

For likelihoods that are log-concave in the outputs the log joint density is concave in the weights and has one mode.
Distances are measured in posterior standard deviations: ``sqrt(g' P^-1 g / (K P))`` with the gradient g and the
precision P, the root mean square over the weights. That is what matters to whoever uses the mode, and it does not
depend on the scale of features or outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.inference.laplace.preconditioner import Preconditioner, Preconditioners
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.row_likelihood import NoiseValues, RowLikelihood, RowsAt

Product = Callable[[Tensor], Tensor]

MAX_CONJUGATE_STEPS = 500
MAX_HALVINGS = 30
NUM_INFORMED_STEPS = 8  # steps with the information; where it is the Hessian itself, these are enough
BLURRED = {torch.float32: 1e-5, torch.float64: 1e-10}  # changes of the density that may be rounding, relative
NEAR = 0.5  # within this distance the precision hardly changes any more, and what was made of it serves on


@dataclass(frozen=True, eq=False)
class Mode:
    """Where the search ended.

    Parameters
    ----------
    weights
        ``[K, P]``.
    rows, prior
        Log likelihood there, and the terms of the log prior.
    distance
        Root mean square distance from the mode that is left, in posterior standard deviations.
    num_steps
        Steps taken.
    converged
        Whether the distance is within the tolerance.
    precondition
        Approximates the inverse of the precision there.
    """

    weights: Tensor
    rows: RowsAt
    prior: PriorTerms
    distance: float
    num_steps: int
    converged: bool
    precondition: Preconditioner

    @property
    def log_joint(self) -> float:
        """Log likelihood plus log prior density, nats."""
        return self.rows.value + float(self.prior.log_prob(self.weights))


def find_mode(
    function: RowLikelihood,
    prior: PriorTerms,
    noise: NoiseValues,
    start: Tensor,
    kind: Preconditioners,
    tolerance: float,
    max_steps: int,
) -> Mode:
    """Climb from ``start [K, P]`` until the distance is below ``tolerance``, or no step climbs any more."""
    weights, rows, distance = start, function.at(start, noise), math.inf
    for num_steps in range(max_steps + 1):
        gradient = rows.gradient + prior.gradient(weights)
        if distance > NEAR:
            precondition = kind.at(rows, prior, noise)
        # the preconditioner stands for the inverse of the precision
        distance = math.sqrt(max(inner(gradient, precondition(gradient)), 0.0) / gradient.numel())
        if distance <= tolerance or num_steps == max_steps:
            break

        # where the information is not the Hessian, its steps come ever nearer but never fast; close by the Hessian's do
        times = rows.hessian_times if num_steps >= NUM_INFORMED_STEPS and distance < NEAR else rows.times

        def product(vectors: Tensor, times: Product = times) -> Tensor:
            return times(vectors) + prior.times(vectors)

        # far from the mode a rough direction does; near it the error of the next step is the square of this one's
        accuracy = min(0.1, max(distance, 0.1 * tolerance / distance))
        direction = conjugate_gradients(product, gradient, precondition, accuracy)
        moved = climb(function, prior, noise, rows, direction, inner(gradient, direction))
        if moved is None:
            break
        rows = moved
        weights = rows.weights
    return Mode(weights, rows, prior, distance, num_steps, distance <= tolerance, precondition)


def climb(
    function: RowLikelihood,
    prior: PriorTerms,
    noise: NoiseValues,
    rows: RowsAt,
    direction: Tensor,
    slope: float,
) -> RowsAt | None:
    """Halve the step until the log joint density rises as it should; None where it never does.

    So near the mode that the rise is lost in the rounding of the density, its slope along the step tells (the approximate Wolfe
    condition of Hager and Zhang 2005): a step that has not gone far beyond the top is good.
    """
    here = rows.value + float(prior.log_prob(rows.weights))
    blurred = BLURRED[function.rows.frame.center.dtype] * (1 + abs(here))
    step = 1.0
    for _ in range(MAX_HALVINGS):
        moved = function.at(rows.weights + step * direction, noise)
        there = moved.value + float(prior.log_prob(moved.weights))
        if there >= here + 1e-4 * step * slope and math.isfinite(there):
            return moved
        if abs(there - here) <= blurred:
            slope_there = inner(moved.gradient + prior.gradient(moved.weights), direction)
            if slope_there >= -0.8 * slope:
                return moved
        step /= 2
    return None


def conjugate_gradients(
    product: Product,
    right: Tensor,
    precondition: Product,
    accuracy: float,
    max_steps: int = MAX_CONJUGATE_STEPS,
) -> Tensor:
    """Solve ``product(x) = right [K, P]`` until the residual, in the preconditioner's norm, fell to a share ``accuracy``."""
    solution, residual = torch.zeros_like(right), right.clone()
    smoothed = precondition(residual)
    search, square = smoothed.clone(), inner(residual, smoothed)
    target = accuracy**2 * square
    for _ in range(max_steps):
        if square <= target or square == 0:
            break
        image = product(search)
        curvature = inner(search, image)
        if (
            curvature <= 0
        ):  # only an indefinite matrix has such a direction: what was found so far is the answer
            break
        step = square / curvature
        solution.add_(search, alpha=step)
        residual.sub_(image, alpha=step)
        smoothed = precondition(residual)
        previous, square = square, inner(residual, smoothed)
        search.mul_(square / previous).add_(smoothed)
    return solution


def inner(a: Tensor, b: Tensor) -> float:
    """Inner product of two matrices."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
