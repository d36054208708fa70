"""Recalibration of a fit on held-out rows: a temperature or a noise factor, by maximum likelihood of the predictive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction
from bll_pyro.prediction.recalibration import NoiseFactor, PredictiveTemperature
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

BOUNDS = (-5.0, 5.0)  # bounds of the log temperature or log noise factor


@own_modes()
def calibrate(fit: Fit, inputs: Any, targets: Any) -> Fit:
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
        Rows that neither the backbone nor the last layer was trained on.

    Raises
    ------
    ValueError
        If the targets do not match, or the fit has a detector, which would no longer be valid.
    TypeError
        For counts, whose variance is a function of their mean, so that a factor would change the family.
    """
    if fit.detector is not None:
        raise ValueError(
            "calibrate: expected a fit without a detector, got one with a detector, which recalibration would invalidate; "
            "calibrate the fit first, then the detector"
        )
    plain = replace(fit, recalibration=None)
    prediction = plain.predict(inputs)
    if isinstance(prediction, ClassPrediction):
        labels = prediction.likelihood.check_targets(_targets(targets, len(prediction)))
        return replace(fit, recalibration=PredictiveTemperature(_temperature(prediction.probs, labels)))
    if isinstance(prediction, LabelPrediction):
        labels = prediction.likelihood.check_targets(_targets(targets, len(prediction)))
        if labels.numel() != prediction.probs.numel():
            raise ValueError(
                f"calibrate: expected labels of shape {list(prediction.probs.shape)}, got {list(torch.as_tensor(targets).shape)}; "
                "pass as many labels per row as in training"
            )
        labels, flat = labels.flatten().long(), prediction.probs.flatten()
        probs = torch.stack([1 - flat, flat], -1)
        return replace(fit, recalibration=PredictiveTemperature(_temperature(probs, labels)))
    assert isinstance(prediction, ValuePrediction)
    values, mixture = _targets(targets, len(prediction)), prediction.mixture

    def log_prob(factor: float) -> float:
        likelihood, outputs, noise = mixture.likelihood.with_noise_times(
            factor, mixture.outputs, mixture.noise
        )
        changed = replace(mixture, likelihood=likelihood, outputs=outputs, noise=noise)
        return float(replace(prediction, mixture=changed).log_prob(values).double().sum())

    return replace(fit, recalibration=NoiseFactor(_best(log_prob)))


def _targets(targets: Any, num_rows: int) -> Tensor:
    values = torch.as_tensor(targets)
    if values.dim() == 0 or len(values) != num_rows:
        raise ValueError(
            f"calibrate: expected a target for each of the {num_rows} inputs, got shape {list(values.shape)}; pass the targets "
            "of the same rows"
        )
    return values


def _temperature(probs: Tensor, labels: Tensor) -> float:
    log_probs = probs.double().clamp_min(torch.finfo(probs.dtype).tiny).log().cpu()
    chosen = labels.cpu()[:, None]

    def log_prob(temperature: float) -> float:
        return float((log_probs / temperature).log_softmax(-1).gather(-1, chosen).sum())

    return _best(log_prob)


def _best(log_prob: Callable[[float], float]) -> float:
    """The number with the largest ``log_prob - (log number)^2 / 2``."""
    from scipy.optimize import minimize_scalar

    def loss(log_number: float) -> float:
        return log_number**2 / 2 - log_prob(math.exp(log_number))

    found = minimize_scalar(loss, bounds=BOUNDS, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))
