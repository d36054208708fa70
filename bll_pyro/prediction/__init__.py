"""Predictions: pure functions of a posterior and features."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import Outputs
from bll_pyro.likelihoods import Ordinal
from bll_pyro.posterior import Posterior
from bll_pyro.prediction.base import Prediction
from bll_pyro.prediction.classes import ClassPrediction, predict_classes
from bll_pyro.prediction.integration import Integration, QuasiMonteCarlo
from bll_pyro.prediction.labels import LabelPrediction, predict_labels
from bll_pyro.prediction.ordinal import OrdinalPrediction
from bll_pyro.prediction.probit import Probit, refusal
from bll_pyro.prediction.recalibration import NoiseFactor, PredictiveTemperature, Recalibration
from bll_pyro.prediction.values import Mixture, ValuePrediction, predict_values
from bll_pyro.scope import own_modes

__all__ = [
    "ClassPrediction",
    "Integration",
    "LabelPrediction",
    "NoiseFactor",
    "OrdinalPrediction",
    "Prediction",
    "PredictiveTemperature",
    "Probit",
    "QuasiMonteCarlo",
    "Recalibration",
    "ValuePrediction",
    "predict",
    "predict_outputs",
]


@own_modes(gradients=False)
def predict(
    posterior: Posterior,
    features: Float[Tensor, "N D"],
    integration: Integration | None = None,
    exposure: Float[Tensor, "N #T"] | None = None,
    recalibration: Recalibration | None = None,
) -> Prediction:
    """Posterior predictive for features ``[N, D]``, of counts at an exposure ``[N, 1]`` or ``[N, T]``."""
    return predict_outputs(posterior, posterior.outputs(features), integration, exposure, recalibration)


@own_modes(gradients=False)
def predict_outputs(
    posterior: Posterior,
    outputs: Outputs,
    integration: Integration | None = None,
    exposure: Float[Tensor, "N #T"] | None = None,
    recalibration: Recalibration | None = None,
) -> Prediction:
    """Predictive of rows whose outputs are known: those of a posterior, or of a posterior without each row."""
    integration = QuasiMonteCarlo() if integration is None else integration
    if not isinstance(integration, Integration):
        raise TypeError(
            f"integration: expected bll.QuasiMonteCarlo() or bll.Probit(), got {integration!r}; None takes the default"
        )
    likelihood, frame = posterior.layer.likelihood, posterior.frame
    noise = posterior.noise(integration.num_points, integration.seed)
    noise = {name: value[:, None] for name, value in noise.items()}
    temperature = recalibration.temperature if isinstance(recalibration, PredictiveTemperature) else 1.0
    if likelihood.is_discrete:
        kind = OrdinalPrediction if isinstance(likelihood, Ordinal) else ClassPrediction
        return predict_classes(outputs, likelihood, noise, integration, kind, temperature)
    single = posterior.target_shape == ()
    if likelihood.is_binary:
        return predict_labels(outputs, likelihood, noise, single, integration, temperature)
    if isinstance(integration, Probit):
        raise TypeError(refusal(likelihood))
    if isinstance(recalibration, NoiseFactor):
        likelihood, outputs, noise = likelihood.with_noise_times(recalibration.factor, outputs, noise)
    if likelihood.is_count:  # large counts, and their log densities, have more digits than float32 holds
        outputs, noise = outputs.double(), {name: value.double() for name, value in noise.items()}
    mixture = Mixture(
        outputs, likelihood, noise, frame.target_center, frame.target_scale, integration,
        None if exposure is None else exposure.to(outputs.mean),
    )  # fmt: skip
    return predict_values(mixture, single)
