"""Predictions of labels that are 0 or 1: one probability and one entropy for each label."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro.gaussian import Outputs
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction.base import Prediction, as_targets
from bll_pyro.prediction.integration import QuasiMonteCarlo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LabelPrediction(Prediction):
    """Posterior predictive of binary labels, ``[N]`` or ``[N, T]``.

    Parameters
    ----------
    probs
        Probability ``E_q[P(y = 1 | f)]`` of each label.
    total, aleatoric, epistemic
        Entropies of each label in nats, of the shape of ``probs``.
    """

    probs: Tensor
    outputs: Outputs
    likelihood: Likelihood
    integration: QuasiMonteCarlo

    @property
    def label(self) -> Tensor:
        """More probable value of each label: 0 or 1."""
        return (self.probs > 0.5).long()

    @property
    def confidence(self) -> Tensor:
        """Probability of that value."""
        return torch.maximum(self.probs, 1 - self.probs)

    @torch.no_grad()
    def log_prob(self, targets: Any) -> Tensor:
        """Log probability of a row's labels together, nats ``[N]``: labels are independent only given the outputs."""
        values = self.likelihood.check_targets(as_targets(targets, len(self))).to(self.probs)
        points = self.integration
        parts = [
            self.likelihood.predictive_log_prob(
                self.outputs.rows(i), values[i], points.num_points, points.seed
            )
            for i in points.chunks(self.outputs)
        ]
        return torch.cat(parts)

    def to_pandas(self) -> pd.DataFrame:
        """One line for each row: probability, label and entropies (a group of columns for each label)."""
        import pandas as pd

        names = ("probs", "label", "total", "aleatoric", "epistemic")
        if self.probs.dim() == 1:
            return pd.DataFrame({name: getattr(self, name).cpu().numpy() for name in names})
        labels = range(self.probs.shape[1])
        return pd.DataFrame({f"{n}_{t}": getattr(self, n)[:, t].cpu().numpy() for n in names for t in labels})

    @classmethod
    def concat(cls, parts: list[LabelPrediction]) -> LabelPrediction:
        """Join the predictions of several batches."""
        names = [f.name for f in fields(cls) if f.name not in ("outputs", "likelihood", "integration")]
        joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        outputs = type(parts[0].outputs).concat([p.outputs for p in parts])
        return cls(
            **joined, outputs=outputs, likelihood=parts[0].likelihood, integration=parts[0].integration
        )


@torch.no_grad()
def predict_labels(
    outputs: Outputs,
    likelihood: Likelihood,
    noise: dict[str, Tensor],
    single: bool,
    integration: QuasiMonteCarlo,
) -> LabelPrediction:
    """Average probabilities and entropies over the same draws of the outputs."""
    probs, aleatoric = [], []
    for index in integration.chunks(outputs):
        draws = outputs.rows(index).draws(integration.num_points, integration.seed)
        conditional = likelihood.label_probs(draws, **noise)
        probs.append(conditional.mean(0))
        aleatoric.append(entropy(conditional).mean(0))
    mean, expected = torch.cat(probs), torch.cat(aleatoric)
    if single:
        mean, expected = mean.squeeze(-1), expected.squeeze(-1)
    total = entropy(mean)
    epistemic = (total - expected).clamp_min(0.0)
    return LabelPrediction(total, total - epistemic, epistemic, mean, outputs, likelihood, integration)


def entropy(probs: Tensor) -> Tensor:
    """Entropy of a label in nats."""
    return torch.special.entr(probs) + torch.special.entr(1 - probs)
