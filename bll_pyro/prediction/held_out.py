"""A recalibration found on predictions of rows that were not fitted: by maximum likelihood, with how it was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.prediction.base import Prediction
from bll_pyro.prediction.classes import ClassPrediction
from bll_pyro.prediction.labels import LabelPrediction
from bll_pyro.prediction.recalibration import FoundOn, NoiseFactor, PredictiveTemperature, Recalibration
from bll_pyro.prediction.values import ValuePrediction

LARGEST = 5.0  # bound of the log temperature or log noise factor
IMPOSSIBLE = 1e100  # loss of a number at which a row has no density
COVERAGE = 0.9  # of the intervals whose share of rows is reported


@dataclass(frozen=True)
class Caution:
    """How far predictions of rows may move a recalibration from 1.

    Parameters
    ----------
    prior_scale
        Standard deviation of the log number's Normal prior: how far from 1 it is before any row is seen.
    least
        The smallest number that is taken.
    gain
        Standard errors of log density that the number must gain; otherwise there is none.
    label_smoothing
        Share of each label that is spread evenly over the other classes (Szegedy et al. 2016) while predictions are made sharper:
        rows without errors would have them as sharp as the prior allows, and say nothing of the errors of new rows.
    """

    prior_scale: float = 1.0
    least: float = math.exp(-5.0)
    gain: float = -math.inf
    label_smoothing: float = 0.0


def found_on(
    prediction: Prediction,
    given: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    weight: Float[Tensor, " N"] | None,
    source: str,
    caution: Caution = Caution(),
) -> Recalibration | None:
    """The temperature or noise factor with the largest ``log p(targets) - (log number / prior_scale)^2 / 2``.

    The penalty is a Normal prior of the log number. With n rows the log likelihood has a curvature of about 2n in a
    log noise factor, so that the penalty is negligible from a few dozen on; without it, rows predicted without error would
    give 0.

    Parameters
    ----------
    prediction
        Predictions without a recalibration, of rows that were not fitted.
    given, targets
        Their targets, as the user gave them and as the likelihood uses them.
    weight
        A weight for each row's log probability.
    source
        What rows these are, for the record.
    caution
        Of rows that say too little; None is returned where the number gains too little on them.

    Raises
    ------
    TypeError
        For counts, whose variance is a function of their mean.
    """
    if isinstance(prediction, ValuePrediction):
        return _noise_factor(prediction, given, weight, source, caution)
    if isinstance(prediction, ClassPrediction):
        return _temperature(prediction.probs, targets, weight, source, len(targets), caution)
    assert isinstance(prediction, LabelPrediction)
    labels, flat = targets.flatten().long(), prediction.probs.flatten()
    of_label = None if weight is None else weight.repeat_interleave(len(labels) // len(weight))
    return _temperature(torch.stack([1 - flat, flat], -1), labels, of_label, source, len(targets), caution)


def _noise_factor(
    prediction: ValuePrediction,
    given: Tensor,
    weight: Tensor | None,
    source: str,
    caution: Caution,
) -> NoiseFactor | None:
    mixture = prediction.mixture

    def scaled(factor: float) -> ValuePrediction:
        likelihood, outputs, noise = mixture.likelihood.with_noise_times(
            factor, mixture.outputs, mixture.noise
        )
        changed = replace(mixture, likelihood=likelihood, outputs=outputs, noise=noise)
        return replace(prediction, mixture=changed)

    def inside(one: ValuePrediction) -> float:
        low, high = one.interval(COVERAGE)
        values = given.to(low).view(low.shape)
        held = ((low <= values) & (values <= high)).double().flatten(1 if low.dim() > 1 else 0)
        return _mean(held.mean(-1) if held.dim() > 1 else held, weight)

    factor = _best(lambda number: scaled(number).log_prob(given), weight, caution)
    if factor is None:
        return None
    how = FoundOn(
        source,
        len(given),
        f"share inside {COVERAGE:.0%} intervals",
        COVERAGE,
        inside(prediction),
        inside(scaled(factor)),
    )
    return NoiseFactor(factor, found_on=how)


def _temperature(
    probs: Float[Tensor, "M C"],
    labels: Tensor,
    weight: Tensor | None,
    source: str,
    num_rows: int,
    caution: Caution,
) -> PredictiveTemperature | None:
    log_probs = probs.double().clamp_min(torch.finfo(probs.dtype).tiny).log().cpu()
    chosen = labels.cpu()[:, None]

    def log_prob(temperature: float, smoothing: float = 0.0) -> Tensor:
        tempered = (log_probs / temperature).log_softmax(-1)
        own = tempered.gather(-1, chosen).squeeze(-1)
        if not smoothing:
            return own
        others = (tempered.sum(-1) - own) / (tempered.shape[-1] - 1)
        return (1 - smoothing) * own + smoothing * others

    def confidence(temperature: float) -> float:
        return _mean((log_probs / temperature).softmax(-1).amax(-1), weight)

    temperature = _best(log_prob, weight, caution)
    if temperature is not None and temperature < 1 and caution.label_smoothing:
        temperature = _best(
            lambda number: log_prob(number, caution.label_smoothing), weight, caution, most=1.0
        )
    if temperature is None:
        return None
    accuracy = _mean((log_probs.argmax(-1) == labels.cpu()).double(), weight)
    how = FoundOn(source, num_rows, "mean confidence", accuracy, confidence(1.0), confidence(temperature))
    return PredictiveTemperature(temperature, found_on=how)


def _sum(values: Float[Tensor, " N"], weight: Float[Tensor, " N"] | None) -> float:
    """Sum ``[N]``, weighted where rows have weights."""
    values = values.double().cpu()
    return float(values.sum() if weight is None else values @ weight.double().cpu())


def _mean(values: Float[Tensor, " N"], weight: Float[Tensor, " N"] | None) -> float:
    """Mean ``[N]``, weighted where rows have weights."""
    total = len(values) if weight is None else float(weight.double().sum())
    return _sum(values, weight) / total if total else math.nan


def _best(
    log_prob: Callable[[float], Tensor],
    weight: Float[Tensor, " N"] | None,
    caution: Caution,
    most: float = math.exp(LARGEST),
) -> float | None:
    """The number with the largest ``sum log_prob - (log number / prior_scale)^2 / 2``; None without the gain that it must have."""
    from scipy.optimize import minimize_scalar

    def loss(log_number: float) -> float:
        found = (log_number / caution.prior_scale) ** 2 / 2 - _sum(log_prob(math.exp(log_number)), weight)
        return found if math.isfinite(found) else IMPOSSIBLE

    bounds = (math.log(caution.least), math.log(most))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    number = math.exp(float(found.x))
    if caution.gain == -math.inf:
        return number
    gain = (log_prob(number) - log_prob(1.0)).double().cpu()
    gain = gain if weight is None else weight.double().cpu() * gain
    return number if float(gain.sum()) > caution.gain * len(gain) ** 0.5 * float(gain.std()) else None
