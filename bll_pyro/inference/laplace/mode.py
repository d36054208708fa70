"""The posterior mode of the weights: Newton's method with conjugate gradients (Nocedal and Wright 2006, 7.1).

For likelihoods that are log-concave in the outputs the log joint density is concave in the weights and has one mode.
Distances are measured in posterior standard deviations: ``sqrt(g' P^-1 g / (K P))`` with the gradient g and the
precision P, the root mean square over the weights. They do not depend on the scale of features or outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.inference.laplace.preconditioner import Preconditioner, Preconditioners
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.row_likelihood import RowLikelihood, RowsAt
from bll_pyro.inference.row_targets import NoiseValues
from bll_pyro.observation import stage

Product = Callable[[Tensor], Tensor]

MAX_CONJUGATE_STEPS = 500  # most conjugate gradient steps in one solution
MAX_HALVINGS = 30  # most halvings of a step in one line search
NUM_INFORMED_STEPS = 8  # Newton steps with the information; enough where it equals the negative Hessian
# relative change of the log density that may be rounding, by dtype of the rows
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
NO_RISE = 1e-5  # expected rise of the log density, as a share of its rounding, at which a line search ends
NEAR = 0.5  # distance, in posterior standard deviations, below which the preconditioner is kept


@dataclass(frozen=True, eq=False)
class Mode:
    """The last point of a search for the mode.

    Parameters
    ----------
    weights
        The point, ``[K, P]``.
    rows, prior
        Log likelihood at the point, and the terms of the log prior.
    distance
        Remaining root mean square distance from the mode, in posterior standard deviations.
    num_steps
        Number of Newton steps.
    converged
        Whether the distance is within the tolerance.
    precondition
        Approximation of the inverse of the precision.
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
    """Newton's method from ``start [K, P]``, until the distance is below ``tolerance`` or the line search fails."""
    weights, rows, distance = start, function.at(start, noise), math.inf
    with stage("mode", num_rows=function.rows.num_rows) as steps:
        for num_steps in range(max_steps + 1):
            gradient = rows.gradient + prior.gradient(weights)
            if distance > NEAR:
                precondition = kind.at(rows, prior, noise)
            # with the preconditioner in place of the inverse precision
            distance = math.sqrt(max(inner(gradient, precondition(gradient)), 0.0) / gradient.numel())
            if steps.observed:
                joint = rows.value + float(prior.log_prob(weights)) - function.rows.log_scale
                steps.advance(log_joint=joint, distance=distance)
            if distance <= tolerance or num_steps == max_steps:
                break

            # where the information is not the negative Hessian its steps converge linearly, near the mode the Hessian's do so
            # quadratically
            times = rows.hessian_times if num_steps >= NUM_INFORMED_STEPS and distance < NEAR else rows.times

            def product(vectors: Tensor, times: Product = times) -> Tensor:
                return times(vectors) + prior.times(vectors)

            # far from the mode a rough direction is enough; near it the error is squared by each accurate step
            accuracy = min(0.1, max(distance, 0.1 * tolerance / distance))
            direction = conjugate_gradients(product, gradient, precondition, accuracy)
            found = line_search(function, prior, noise, rows, direction, inner(gradient, direction))
            if found is None:
                break
            rows = found
            weights = rows.weights
    return Mode(weights, rows, prior, distance, num_steps, distance <= tolerance, precondition)


def line_search(
    function: RowLikelihood,
    prior: PriorTerms,
    noise: NoiseValues,
    rows: RowsAt,
    direction: Tensor,
    directional: float,
) -> RowsAt | None:
    """Halve the step until the log joint density increases sufficiently; None if it never does.

    ``directional`` is the directional derivative at the start. Where the increase is within rounding, the directional
    derivative at the new point decides (the approximate Wolfe condition of Hager and Zhang 2005): a step that does not
    pass the maximum by far is accepted.
    """
    value = rows.value + float(prior.log_prob(rows.weights))
    rounding = ROUNDING[function.rows.frame.center.dtype] * (1 + abs(value))
    step = 1.0
    for _ in range(MAX_HALVINGS):
        proposal = function.at(rows.weights + step * direction, noise)
        new_value = proposal.value + float(prior.log_prob(proposal.weights))
        if new_value >= value + 1e-4 * step * directional and math.isfinite(new_value):
            return proposal
        if abs(new_value - value) <= rounding:
            new_directional = inner(proposal.gradient + prior.gradient(proposal.weights), direction)
            if new_directional >= -0.8 * directional:
                return proposal
        step /= 2
        if step * directional < NO_RISE * rounding:  # no shorter step can be told from none
            break
    return None


def conjugate_gradients(
    product: Product,
    right: Tensor,
    precondition: Product,
    accuracy: float,
    max_steps: int = MAX_CONJUGATE_STEPS,
) -> Tensor:
    """Solve ``product(x) = right [K, P]`` to a relative residual ``accuracy``, in the preconditioner's norm."""
    solution, residual = torch.zeros_like(right), right.clone()
    smoothed = precondition(residual)
    search, square = smoothed.clone(), inner(residual, smoothed)
    target = accuracy**2 * square
    for _ in range(max_steps):
        if square <= target or square == 0:
            break
        image = product(search)
        curvature = inner(search, image)
        if curvature <= 0:  # the matrix is indefinite: return the solution of the steps before
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
