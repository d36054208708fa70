"""What a graph gives out for each kind of prediction: classes, labels, values. The likelihood does the rest, as in ``predict``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bll_pyro.export.points import drawn
from bll_pyro.export.quantiles import mixture_quantiles
from bll_pyro.gaussian import Outputs
from bll_pyro.likelihoods import Likelihood
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Integration, NoiseFactor, PredictiveTemperature, Probit, Recalibration
from bll_pyro.prediction.base import Prediction
from bll_pyro.prediction.classes import decomposed, parted
from bll_pyro.prediction.labels import LabelPrediction, label_entropy
from bll_pyro.prediction.recalibration import averaged, averaged_parts, tempered_parts
from bll_pyro.prediction.values import Mixture, ValuePrediction

Found = dict[str, Tensor]


@dataclass(frozen=True)
class GraphRows:
    """GraphRows of a graph: their outputs, and all that ``predict`` would make its prediction of."""

    outputs: Outputs
    posterior: Posterior
    noise: dict[str, Tensor]  # draws [S, 1, ...]
    integration: Integration
    recalibration: Recalibration | None

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood, in the units of the frame."""
        return self.posterior.layer.likelihood

    @property
    def temperature(self) -> float:
        """That of the recalibration."""
        found = self.recalibration
        return found.temperature if isinstance(found, PredictiveTemperature) else 1.0

    def predicted(self) -> Prediction:
        """The prediction, without what only its methods need."""
        return KINDS[prediction_kind(self.likelihood)](self)


def prediction_kind(likelihood: Likelihood) -> str:
    """The kind of prediction that a likelihood has: ``classes``, ``labels`` or ``values``."""
    return "classes" if likelihood.is_discrete else "labels" if likelihood.is_binary else "values"


def classes(rows: GraphRows) -> Prediction:
    """Probabilities ``[N, C]``, entropies ``[N]``."""
    if isinstance(rows.integration, Probit):
        found = rows.integration.classes(rows.outputs, rows.likelihood, rows.temperature)
        return parted(*found, rows.likelihood)
    num_points = rows.integration.num_points
    # noise has draws of its own for all points
    draws = [rows.outputs.draws(num_points)] if rows.noise else drawn(rows.outputs, num_points)
    log_probs = [rows.likelihood.class_log_probs(part, **rows.noise) for part in draws]
    return decomposed(*averaged_parts(log_probs, rows.temperature), rows.likelihood)


def labels(rows: GraphRows) -> Prediction:
    """Probability and entropy of each label, ``[N]`` or ``[N, T]``."""
    if isinstance(rows.integration, Probit):
        mean, expected = rows.integration.labels(rows.outputs, rows.likelihood)
        if rows.temperature != 1.0:
            both, expected = tempered_parts(torch.stack([1 - mean, mean], -1), expected, rows.temperature)
            mean = both[..., 1]
    else:
        one = rows.likelihood.label_probs(rows.outputs.draws(rows.integration.num_points), **rows.noise)
        if rows.temperature == 1.0:
            mean, expected = one.mean(0), label_entropy(one).mean(0)
        else:
            both, expected = averaged(torch.stack([1 - one, one], -1), rows.temperature)
            mean = both[..., 1]
    if rows.posterior.target_shape == ():
        mean, expected = mean.squeeze(-1), expected.squeeze(-1)
    total = label_entropy(mean)
    epistemic = (total - expected).clamp_min(0.0)
    return LabelPrediction(
        total, total - epistemic, epistemic, mean, rows.outputs, rows.likelihood, rows.integration
    )


def values(rows: GraphRows) -> Prediction:
    """Mean and variances ``[N]`` or ``[N, T]``, in the user's units."""
    likelihood, outputs, noise = rows.likelihood, rows.outputs, rows.noise
    assert not isinstance(rows.integration, Probit)
    if isinstance(rows.recalibration, NoiseFactor):
        likelihood, outputs, noise = likelihood.with_noise_times(rows.recalibration.factor, outputs, noise)
    if likelihood.is_count:
        outputs, noise = outputs.double(), {name: value.double() for name, value in noise.items()}
    frame = rows.posterior.frame
    mixture = Mixture(outputs, likelihood, noise, frame.target_center, frame.target_scale, rows.integration)
    center, spread = mixture.center, mixture.spread
    mean, aleatoric, epistemic = likelihood.moments(**mixture.given(slice(None)))
    mean, aleatoric, epistemic = mean * spread + center, aleatoric * spread**2, epistemic * spread**2
    if rows.posterior.target_shape == ():
        mean, aleatoric, epistemic = (one.squeeze(-1) for one in (mean, aleatoric, epistemic))
    return ValuePrediction(aleatoric + epistemic, aleatoric, epistemic, mean, mixture)


KINDS: dict[str, Callable[[GraphRows], Prediction]] = {"classes": classes, "labels": labels, "values": values}


def graph_outputs(prediction: Any, quantiles: tuple[float, ...]) -> Found:
    """Outputs of a graph by name."""
    found: Found = {}
    if isinstance(prediction, ValuePrediction):
        found["mean"], found["scale"] = prediction.mean, prediction.total.sqrt()
        if quantiles:
            found["quantiles"] = mixture_quantiles(prediction, quantiles)
    else:
        found["probs"] = prediction.probs
    return found | {name: getattr(prediction, name) for name in ("total", "aleatoric", "epistemic")}
