r"""Single draws under a predictive temperature: each is tilted, so that on average they are the tempered prediction.

A predictive temperature is of the average over draws, and says nothing of a single one. Of all joint distributions of draw
and class in which every draw keeps its weight, and in which the classes of a row have the tempered probabilities
``p_T(c)``, the one nearest to the fit's own (by the Kullback-Leibler divergence; Csiszar 1975) is

.. math::
    r_s(c) = p_s(c) e^{b(c)} / \sum_j p_s(j) e^{b(j)}, \qquad E_s[r_s(c)] = p_T(c),

with one vector b for the row: for ``Categorical`` a shift of the outputs. It minimises the convex function
``E_s[log sum_j p_s(j) e^b(j)] - sum_c p_T(c) b(c)``, here by Newton's method. So the posterior stays as it is, and a draw stays
one function of the inputs. :func:`~bll_pyro.prediction.recalibration.averaged` does not hold the weights of the draws, and needs
no search.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import Outputs
from bll_pyro.likelihoods import Likelihood
from bll_pyro.posterior import Posterior
from bll_pyro.prediction.integration import QuasiMonteCarlo
from bll_pyro.prediction.recalibration import PredictiveTemperature, Recalibration, averaged

MAX_ROUNDS = 60
CLOSE = 1e-7  # largest difference of a probability
LEAST_PROB = 1e-30
RIDGE = 1e-12  # of the Hessian: b is defined up to a constant
MAX_HALVINGS = 30
LARGEST_STEP = 20.0  # of an element of b in a round


def conditional_probs(
    likelihood: Likelihood, outputs: Float[Tensor, "S N K"], noise: dict[str, Tensor]
) -> Float[Tensor, "S *N C"]:
    """Probabilities given draws: of the classes ``[S, N, C]``, or of 0 and 1 for each label ``[S, N, T, 2]``."""
    if likelihood.is_discrete:
        return likelihood.class_probs(outputs, **noise)
    one = likelihood.label_probs(outputs, **noise)
    return torch.stack([1 - one, one], -1)


def tilted(probs: Float[Tensor, "S *N C"], tilt: Float[Tensor, "*N C"]) -> Float[Tensor, "S *N C"]:
    """``r_s(c)``."""
    return (probs.clamp_min(LEAST_PROB).log() + tilt.to(probs)).softmax(-1)


@torch.no_grad()
def tilt_of(
    posterior: Posterior, features: Float[Tensor, "N D"], recalibration: Recalibration | None
) -> Float[Tensor, "*N C"] | None:
    """``b`` of each row, ``[N, C]`` or ``[N, T, 2]``, over the points of the prediction; None without a temperature."""
    if not isinstance(recalibration, PredictiveTemperature):
        return None
    integration = QuasiMonteCarlo()
    outputs: Outputs = posterior.outputs(features)
    noise = posterior.noise(integration.num_points, integration.seed)
    noise = {name: value[:, None] for name, value in noise.items()}
    parts = []
    for rows in integration.chunks(outputs):
        draws = outputs.rows(rows).draws(integration.num_points, integration.seed)
        parts.append(
            solve(conditional_probs(posterior.layer.likelihood, draws, noise), recalibration.temperature)
        )
    return torch.cat(parts)


def solve(probs: Float[Tensor, "S *N C"], temperature: float) -> Float[Tensor, "*N C"]:
    """``b`` for given draws of the probabilities, in float64."""
    log_probs = probs.double().clamp_min(LEAST_PROB).log().flatten(1, -2)  # [S, n, C]
    wanted = averaged(log_probs.exp(), temperature)[0]
    tilt = (1 / temperature - 1) * log_probs.logsumexp(0)
    tilt -= tilt.mean(-1, keepdim=True)

    def value_at(tilt: Tensor) -> tuple[Tensor, Tensor]:
        joint = log_probs + tilt
        level = joint.logsumexp(-1, keepdim=True)
        return level.mean((0, -1)) - (wanted * tilt).sum(-1), (joint - level).exp()

    value, given = value_at(tilt)
    for _ in range(MAX_ROUNDS):
        gradient = given.mean(0) - wanted
        if float(gradient.abs().max()) < CLOSE:
            break
        outer = torch.einsum("snc,snd->ncd", given, given) / len(given)
        hessian = torch.diag_embed(given.mean(0)) - outer
        step = torch.linalg.solve(hessian + RIDGE * torch.eye(len(wanted[0])).to(hessian) + 1.0, gradient)
        step = step.clamp(-LARGEST_STEP, LARGEST_STEP)
        size, slope = torch.ones_like(value), (step * gradient).sum(-1)
        for _ in range(MAX_HALVINGS):
            new_value, new_given = value_at(tilt - size[:, None] * step)
            rose = new_value > value - 1e-4 * size * slope + 1e-12 * (1 + value.abs())
            if not bool(rose.any()):
                break
            size = torch.where(rose, size / 2, size)
        tilt, value, given = tilt - size[:, None] * step, new_value, new_given
    return tilt.view(*probs.shape[1:])
