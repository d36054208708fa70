"""Predictions of labels that are 0 or 1, or one of two: one probability and one entropy for each label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.classes import Classes
from bll_pyro.gaussian import Outputs
from bll_pyro.gaussian.points import halves, joined
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction.base import Prediction, as_targets
from bll_pyro.prediction.integration import Integration
from bll_pyro.prediction.probit import Probit
from bll_pyro.prediction.recalibration import averaged, tempered_parts
from bll_pyro.scope import own_modes


class OfLabels(Prediction):
    """What every prediction of binary labels derives from their probabilities."""

    probs: Float[Tensor, "N ..."]

    @property
    def label(self) -> Int[Tensor, "N *T"] | NDArray[Any]:
        """More probable value of each label: 0 or 1, or, of two labels of another type, an array of these."""
        numbers = (self.probs > 0.5).long()
        return numbers if self.coding is None else self.coding.label_of(numbers)

    @property
    def confidence(self) -> Float[Tensor, "N *T"]:
        """Probability of that value."""
        return torch.maximum(self.probs, 1 - self.probs)

    def _shown(self, prob: float | None) -> dict[str, Any]:
        return {"label": self.label, "confidence": self.confidence, "probs": self.probs}


@dataclass(frozen=True, eq=False)
class LabelPrediction(OfLabels):
    """Posterior predictive of binary labels, ``[N]`` or ``[N, T]``.

    Parameters
    ----------
    probs
        Probability ``E_q[P(y = 1 | f)]`` of each label; of two labels of another type, that of ``classes[1]``.
    total, aleatoric, epistemic
        Entropies of each label in nats, of the shape of ``probs``.
    error
        Estimated error of the integration in ``probs``, from two halves of the points; None for :class:`Probit`.
    """

    probs: Float[Tensor, "N ..."]
    outputs: Outputs
    likelihood: Likelihood
    integration: Integration
    temperature: float = 1.0  # of a recalibration
    error: Float[Tensor, "N ..."] | None = field(default=None, kw_only=True)

    @property
    def coding(self) -> Classes | None:
        return self.likelihood.coding

    @own_modes(gradients=False)
    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log probability of a row's labels together, nats ``[N]``: labels are independent only given the outputs.

        :class:`Probit` and recalibrated predictions have the marginal of each label only, and take labels as independent.
        This is exact for posteriors with independent outputs, such as those of the ``Diagonal`` and ``BlockDiagonal`` guides.
        """
        values = self.likelihood.check_targets(as_targets(targets, self)).to(self.probs)
        points = self.integration
        if self.temperature != 1.0 or isinstance(points, Probit):
            chosen = torch.where(values.view(self.probs.shape) > 0, self.probs, 1 - self.probs)
            return chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log().view(len(self), -1).sum(-1)
        parts = [
            self.likelihood.predictive_log_prob(
                self.outputs.rows(i), values[i], points.num_points, points.seed
            )
            for i in points.chunks(self.outputs)
        ]
        return torch.cat(parts)

    @classmethod
    def concat(cls, parts: list[LabelPrediction]) -> LabelPrediction:
        """Join the predictions of several batches."""
        names = ["total", "aleatoric", "epistemic", "probs"]
        names += ["error"] if parts[0].error is not None else []
        joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        outputs = type(parts[0].outputs).concat([p.outputs for p in parts])
        shared = {name: getattr(parts[0], name) for name in ("likelihood", "integration", "temperature")}
        return cls(**joined, outputs=outputs, **shared)


@own_modes(gradients=False)
def predict_labels(
    outputs: Outputs,
    likelihood: Likelihood,
    noise: dict[str, Tensor],
    single: bool,
    integration: Integration,
    temperature: float = 1.0,
) -> LabelPrediction:
    """Average probabilities and entropies over the same draws of the outputs; temper the average."""
    error: Tensor | None = None
    if isinstance(integration, Probit):
        mean, expected = integration.labels(outputs, likelihood)
        if temperature != 1.0:
            both, expected = tempered_parts(torch.stack([1 - mean, mean], -1), expected, temperature)
            mean = both[..., 1]
    else:
        parts = []
        for index in integration.chunks(outputs):
            draws = outputs.rows(index).draws(integration.num_points, integration.seed)
            conditional = likelihood.label_probs(draws, **noise)
            if temperature == 1.0:
                parts.append((*halves(conditional), label_entropy(conditional).mean(0)))
                continue
            probs, mixed = averaged(torch.stack([1 - conditional, conditional], -1), temperature)
            parts.append((probs[..., 1], torch.zeros_like(mixed), mixed))
        mean, spread, expected = joined(parts)
        error = spread if temperature == 1.0 else None  # of a tempered average there is no estimate
        error = error.squeeze(-1) if single and error is not None else error
    if single:
        mean, expected = mean.squeeze(-1), expected.squeeze(-1)
    total = label_entropy(mean)
    epistemic = (total - expected).clamp_min(0.0)
    return LabelPrediction(
        total, total - epistemic, epistemic, mean, outputs, likelihood, integration, temperature, error=error
    )


def label_entropy(probs: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """Entropy of a label in nats."""
    return torch.special.entr(probs) + torch.special.entr(1 - probs)
