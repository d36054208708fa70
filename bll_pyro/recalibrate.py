"""Recalibration of a fit on held-out rows: a temperature or a noise factor, by maximum likelihood of the predictive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import fitted
from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction
from bll_pyro.prediction.recalibration import NoiseFactor, PredictiveTemperature
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

BOUNDS = (-5.0, 5.0)  # bounds of the log temperature or log noise factor


@own_modes()
def calibrate(fit: Fit, inputs: Any, targets: Any = None) -> Fit:
    """A new fit with a predictive temperature or a noise factor fitted to held-out rows.

    For classes and labels (``Categorical``, ``Ordinal``, ``Bernoulli``) the predicted probabilities are tempered,
    ``p_k^(1/T)``, after the average over the posterior, so no predicted class changes (Guo et al. 2017). Several labels
    per row share one temperature, and count as independent. For real values (``Gaussian``, ``StudentT``,
    ``HeteroscedasticGaussian``) the noise scale is multiplied by a factor.

    The number maximises the log probability of the held-out targets minus ``(log number)^2 / 2``. This penalty is
    negligible with a hundred rows; without it, rows predicted without error would give T = 0. The result is in
    ``fit.recalibration`` and replaces an earlier one.

    Parameters
    ----------
    fit
        Any fit, also of a point estimate.
    inputs, targets
        Rows that neither the backbone nor the last layer was trained on: together in any form that :func:`bll_pyro.fit`
        takes, or as two arguments. Weights multiply the rows' log probabilities.

    Raises
    ------
    ValueError
        If the targets do not match, or the fit has a detector, which would no longer be valid.
    TypeError
        For counts, whose variance is a function of their mean, so that a factor would change the family.
    """
    fitted(fit, "calibrate")
    if fit.detector is not None:
        raise ValueError(
            "calibrate: expected a fit without a detector, got one with a detector, which recalibration would invalidate; "
            "calibrate the fit first, then the detector"
        )
    rows = fit.rows(inputs, targets, what="data of calibrate")
    weight = rows.columns.weight
    prediction = replace(fit.head, recalibration=None).predict(rows.data)
    if isinstance(prediction, ClassPrediction):
        temperature = _temperature(prediction.probs, rows.targets, weight)
        return replace(fit, recalibration=PredictiveTemperature(temperature))
    if isinstance(prediction, LabelPrediction):
        labels, flat = rows.targets.flatten().long(), prediction.probs.flatten()
        probs = torch.stack([1 - flat, flat], -1)
        of_label = None if weight is None else weight.repeat_interleave(len(labels) // len(weight))
        return replace(fit, recalibration=PredictiveTemperature(_temperature(probs, labels, of_label)))
    assert isinstance(prediction, ValuePrediction)
    mixture = prediction.mixture

    def log_prob(factor: float) -> float:
        likelihood, outputs, noise = mixture.likelihood.with_noise_times(
            factor, mixture.outputs, mixture.noise
        )
        changed = replace(mixture, likelihood=likelihood, outputs=outputs, noise=noise)
        return _sum(replace(prediction, mixture=changed).log_prob(rows.given), weight)

    return replace(fit, recalibration=NoiseFactor(_best(log_prob)))


def _sum(values: Float[Tensor, " N"], weight: Float[Tensor, " N"] | None) -> float:
    """Sum ``[N]``, weighted where rows have weights."""
    values = values.double().cpu()
    return float(values.sum() if weight is None else values @ weight.double().cpu())


def _temperature(probs: Tensor, labels: Tensor, weight: Tensor | None) -> float:
    log_probs = probs.double().clamp_min(torch.finfo(probs.dtype).tiny).log().cpu()
    chosen = labels.cpu()[:, None]

    def log_prob(temperature: float) -> float:
        return _sum((log_probs / temperature).log_softmax(-1).gather(-1, chosen).squeeze(-1), weight)

    return _best(log_prob)


def _best(log_prob: Callable[[float], float]) -> float:
    """The number with the largest ``log_prob - (log number)^2 / 2``."""
    from scipy.optimize import minimize_scalar

    def loss(log_number: float) -> float:
        return log_number**2 / 2 - log_prob(math.exp(log_number))

    found = minimize_scalar(loss, bounds=BOUNDS, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))
