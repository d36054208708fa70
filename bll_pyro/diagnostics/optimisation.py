"""Whether the ELBO has converged: its slope against its noise, and the distance of the result from the optimum.

The learning rate falls to zero, so that the ELBO flattens at the end whether or not it has converged. The second check
therefore looks at the result itself: at the optimum the gradient of the ELBO in the means of the weights is zero. With
gradient g and curvature P (:mod:`bll_pyro.inference.leave_one_out.response`) the means are ``P^-1 g`` away from it, and

========================= ===========================================
on paper                  in code
========================= ===========================================
``g = dELBO / dm``        ``slope_of_means``
``sqrt(g' P^-1 g / KP)``  ``distance_to_optimum``: in posterior
                          standard deviations of a weight, root mean
                          square
========================= ===========================================
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.diagnostics.study import Study
from bll_pyro.diagnostics.verdicts import Check
from bll_pyro.gaussian.precision import covariance_times
from bll_pyro.inference.leave_one_out.response import global_draws
from bll_pyro.inference.leave_one_out.row_by_row import row_blocks
from bll_pyro.inference.svi.svi import SVI
from bll_pyro.scope import generator, own_modes

MIN_STEPS = 30
MIN_STANDARD_ERRORS = 3.0
SLOPE_LIMITS = (0.01, 0.05)  # nats a row gained over the last third
DISTANCE_LIMITS = (0.06, 0.12)  # posterior standard deviations of a weight
FALL = 5.0  # standard deviations of a step by which the ELBO must not fall at first

MORE_STEPS = "more steps (num_epochs)"
LOWER_RATE = "a lower learning rate"


def messages(study: Study) -> Check:
    """What the inference itself warned of."""
    trace = study.fit.trace
    if trace.converged:
        return Check.graded("inference", 0, (0, 1), "the inference reported no trouble", "")
    said = "; ".join(trace.messages)
    number = max(len(trace.messages), 1)
    return Check.graded("inference", number, (0, math.inf), f"the inference warned: {said}", "what it says")


def elbo_slope(study: Study) -> Check:
    """The ELBO over the last third of the steps."""
    name, elbo = "ELBO trace", study.fit.trace.elbo
    if elbo is None:
        return Check.skipped(name, f"{type(study.fit.inference).__name__} has no ELBO of each step")
    values = elbo.double().cpu().numpy() / study.fit.num_rows
    if len(values) < MIN_STEPS:
        return Check.skipped(name, f"{len(values)} steps are too few to tell a slope from noise")
    last = values[-(len(values) // 3) :]
    rise, error = rise_of(last)
    significant = abs(rise) > MIN_STANDARD_ERRORS * error
    said = f"{rise:+.3g} nats a row over the last {len(last)} of {len(values)} steps (standard error {error:.2g})"
    finding = (
        f"the ELBO still moves: {said}" if significant else f"the ELBO is level within its noise: {said}"
    )
    value = abs(rise) if significant else 0.0
    return Check.graded(name, value, SLOPE_LIMITS, finding, _cure(study))


def rise_of(values: Float[np.ndarray, " steps"]) -> tuple[float, float]:
    """Rise of the straight line through values at even distances, from the first to the last, and its standard error."""
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    square = float((steps**2).sum())
    slope = float(steps @ values) / square
    rest = values - values.mean() - slope * steps
    error = math.sqrt(float((rest**2).sum()) / (len(values) - 2) / square)
    return slope * (len(values) - 1), error * (len(values) - 1)


def optimum(study: Study) -> Check:
    """How far the means are from the optimum of the ELBO."""
    name = "optimum"
    if not isinstance(study.fit.inference, SVI):
        return Check.skipped(name, f"{type(study.fit.inference).__name__} does not maximise an ELBO")
    if study.gaussian is None:
        return Check.skipped(name, "the guide is not one Gaussian over the weights")
    distance, gain = distance_to_optimum(study)
    finding = (
        f"the means of the weights are {distance:.2g} posterior standard deviations from the best ELBO of their guide, root mean "
        f"square (about {gain:.2g} nats in all)"
    )
    return Check.graded(name, distance, DISTANCE_LIMITS, finding, _cure(study))


@own_modes(gradients=False)
def distance_to_optimum(study: Study) -> tuple[float, float]:
    """Distance of the means, and about how many nats of the ELBO it costs."""
    slope = slope_of_means(study)
    square = float((slope * covariance_times(study.response.weights, slope)).sum())
    return math.sqrt(max(square, 0.0) / slope.numel()), square / 2


def slope_of_means(study: Study) -> Float[Tensor, "K P"]:
    """Slope of the ELBO in the means of the weights ``[K, P]``, over all rows."""
    posterior, row_by_row = study.gaussian, study.row_by_row
    assert posterior is not None
    weights = row_by_row.weights
    total = torch.zeros_like(weights.loc)
    for design, targets in row_blocks(study.rows, None, row_by_row.row_size):
        gradient, _ = row_by_row.derivatives(weights.outputs(design), targets)
        total += gradient.mT @ design
    return total + prior_slope(study)


def prior_slope(study: Study) -> Float[Tensor, "K P"]:
    """Slope of ``E_q[log p(W, b)]`` in the means of the weights ``[K, P]``."""
    posterior, weights = study.gaussian, study.row_by_row.weights
    assert posterior is not None
    layer, draws = posterior.layer.rotated(posterior.frame.rotation), global_draws(posterior)
    total = torch.zeros_like(weights.loc)
    with torch.enable_grad():
        loc = weights.loc.detach().clone().requires_grad_()
        for hyper in draws:
            random = generator(study.seed, loc.device)
            term = layer.expected_log_prior(replace(weights, loc=loc), {**posterior.learned, **hyper}, random)
            total = total + torch.autograd.grad(term / len(draws), loc)[0]
    return total


def _cure(study: Study) -> str:
    """More steps, or a lower rate where the ELBO fell from where it started."""
    elbo = study.fit.trace.elbo
    if elbo is None or not isinstance(study.fit.inference, SVI):
        return MORE_STEPS
    values = elbo.double().cpu().numpy()
    if len(values) < MIN_STEPS:
        return f"{MORE_STEPS}; there were {len(values)}"
    window = max(1, len(values) // 20)
    running = np.convolve(values, np.full(window, 1 / window), mode="valid")
    noise = float(np.std(np.diff(values[-(len(values) // 3) :]))) / math.sqrt(2)
    if running.min() < values[0] - FALL * noise:
        rate = study.fit.inference.rate(study.fit.posterior.frame.num_features)
        return f"{LOWER_RATE} than {rate:g}, since the ELBO first fell far below its start; then {MORE_STEPS}"
    return f"{MORE_STEPS}; there were {len(values)}"
