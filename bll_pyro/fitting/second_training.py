"""The second training of a joint fit of few rows: whether there is one, and the number that it takes from the first.

Of few rows each one counts. Those that were kept for a noise factor or temperature are trained on the second time
(docs/decisions/0013-calibration-rows.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro.fitting.calibration import AUTOMATIC, predictions_of
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.prediction import (
    ClassPrediction,
    LabelPrediction,
    NoiseFactor,
    Prediction,
    PredictiveTemperature,
    Recalibration,
    ValuePrediction,
)

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

FEW = 2000  # rows below which a joint fit trains a second time, with the rows that it kept among them
FROM_THE_FIRST = "rows kept from a first training"


def trains_again(first: Fit, rows: TrainingData, calibration: Any) -> bool:
    """Whether a fit that has kept some of its rows is to be trained once more, on all: if it did so by default.

    Not where a callback ended the first training, or where it became infinite: the second would do the same.
    """
    joint = first.trace.statistics.get("joint") or first.trace
    return calibration is AUTOMATIC and rows.source.num_rows < FEW and joint.converged


def trained_again(
    first: Fit, second: Fit, rows: TrainingData, device: str | torch.device | None, batch_size: int
) -> Fit:
    """The fit to all rows, with what the first one found on the rows that it kept.

    Parameters
    ----------
    first, second
        The fits without and with the rows that were kept.
    rows
        Those that both were trained on.
    device, batch_size
        For their features.
    """
    found = first.recalibration
    if found is not None:
        # features of few rows, in memory: a store would keep what nobody reads again
        fits = [replace(one, store=None) for one in (first, second)]
        before, after = (predictions_of(one, rows, device, batch_size)[0] for one in fits)
        found = carried_over(found, before, after)
    parts = [[fit.trace, fit.trace.statistics.get("joint")] for fit in (first, second)]
    for earlier, later in zip(*parts, strict=True):
        if later is not None:
            later.wall_time += earlier.wall_time
    return replace(second, recalibration=found)


def carried_over(found: Recalibration, before: Prediction, after: Prediction) -> Recalibration:
    """The number of one fit for another one: half way between the same number and the same spread.

    A noise factor is relative to the noise of its own fit, and a temperature to its own log probabilities; a second training
    learns other ones. If it only follows its rows more closely, the errors of new rows are as they were, and so should the
    noise be. If it is the better trained one, they fall with its noise, and the factor should be as it was. Nothing tells
    which: so the log number is the mean of both (docs/decisions/0013-calibration-rows.md).

    Parameters
    ----------
    found
        The number of the first fit.
    before, after
        Predictions of the same rows, those that both fits were trained on, without a recalibration.
    """
    difference = log_spread(before) - log_spread(after)
    difference = difference[difference.isfinite()]
    ratio = float((difference.mean() / 2).exp()) if len(difference) else 1.0
    how = None if found.found_on is None else replace(found.found_on, source=FROM_THE_FIRST)
    if isinstance(found, NoiseFactor):
        return NoiseFactor(found.factor * ratio, found_on=how)
    assert isinstance(found, PredictiveTemperature)
    return PredictiveTemperature(found.temperature / ratio, found_on=how)


def log_spread(prediction: Prediction) -> Tensor:
    """Log of what a noise factor multiplies or a temperature divides: a number for each row, or each target of it.

    Of values it is the standard deviation of the noise. Of classes and labels it is the root mean square of the log
    probabilities, less their mean; -inf where all are equal.
    """
    if isinstance(prediction, ValuePrediction):
        return prediction.aleatoric.double().log() / 2
    assert isinstance(prediction, (ClassPrediction, LabelPrediction))
    probs = prediction.probs.double()
    if isinstance(prediction, LabelPrediction):
        probs = torch.stack([1 - probs, probs], -1)
    log_probs = probs.clamp_min(torch.finfo(prediction.probs.dtype).tiny).log()
    return (log_probs - log_probs.mean(-1, keepdim=True)).square().mean(-1).log() / 2
