"""Predictions of classes: probabilities, and entropies split into aleatoric and epistemic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro import metrics
from bll_pyro.classes import Classes
from bll_pyro.gaussian import Outputs
from bll_pyro.gaussian.points import joined
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction.base import Prediction, as_targets
from bll_pyro.prediction.integration import Integration
from bll_pyro.prediction.probit import Probit
from bll_pyro.prediction.recalibration import averaged, class_entropy
from bll_pyro.scope import own_modes


@dataclass(frozen=True, eq=False)
class ClassPrediction(Prediction):
    """Posterior predictive over C classes.

    Parameters
    ----------
    probs
        Class probabilities ``E_q[p(y | f)]``, ``[N, C]``.
    total
        Predictive entropy, nats ``[N]``.
    aleatoric
        Expected entropy ``E_q[H(p(y | f))]``, nats ``[N]``.
    epistemic
        Mutual information of target and weights, ``total - aleatoric``, nats ``[N]``; never negative.
    error
        Estimated error of the integration: root mean square over the classes of ``probs``, ``[N]``. From two halves of
        the points, and too large rather than too small for quasi-random ones; None for :class:`Probit`, whose error is not
        one of integration.
    """

    probs: Float[Tensor, "N C"]
    likelihood: Likelihood
    error: Float[Tensor, " N"] | None = field(default=None, kw_only=True)

    @property
    def coding(self) -> Classes | None:
        return self.likelihood.coding

    @property
    def label(self) -> Int[Tensor, " N"] | NDArray[Any]:
        """Most probable class ``[N]``: its number, or, where labels are something else, an array of these."""
        return self._labels(self.probs.argmax(-1))

    def _labels(self, numbers: Int[Tensor, " N"]) -> Int[Tensor, " N"] | NDArray[Any]:
        return numbers if self.coding is None else self.coding.label_of(numbers)

    @property
    def confidence(self) -> Float[Tensor, " N"]:
        """Probability of that class ``[N]``."""
        return self.probs.amax(-1)

    @own_modes(gradients=False)
    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log probability of labels, nats ``[N]``."""
        labels = self.likelihood.check_targets(as_targets(targets, self)).to(self.probs.device)
        chosen = self.probs.gather(-1, labels[:, None]).squeeze(-1)
        return chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()

    @own_modes(gradients=False)
    def decide(self, loss_matrix: Any) -> metrics.Decision:
        """Action of least expected cost for each row, ``[N]``, and that cost, ``[N]``.

        ``loss_matrix[a, k]`` is the cost of action a when the class is k, for any number of actions; abstaining is one more
        action, a row of constant cost.
        """
        return metrics.expected_cost_decision(self.probs, loss_matrix)

    def _shown(self, prob: float | None) -> dict[str, Any]:
        columns = [f"p{k}" for k in range(self.probs.shape[1])]
        if self.coding is not None:
            columns = [f"p_{label}" for label in self.coding.labels]
        by_class = dict(zip(columns, self.probs.unbind(1), strict=True))
        return {"label": self.label, "confidence": self.confidence, **by_class}

    @classmethod
    def concat(cls, parts: list[ClassPrediction]) -> ClassPrediction:
        """Join the predictions of several batches."""
        names = ["total", "aleatoric", "epistemic", "probs"]
        names += ["error"] if parts[0].error is not None else []
        joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        return cls(**joined, likelihood=parts[0].likelihood)


@own_modes(gradients=False)
def predict_classes(
    outputs: Outputs,
    likelihood: Likelihood,
    noise: dict[str, Tensor],
    integration: Integration,
    kind: type[ClassPrediction] = ClassPrediction,
    temperature: float = 1.0,
) -> ClassPrediction:
    """Average probabilities and entropies over the same draws, or take them in closed form; temper the average."""
    error: Tensor | None = None
    if isinstance(integration, Probit):
        return parted(*integration.classes(outputs, likelihood, temperature), likelihood, kind)
    if temperature == 1.0:
        blocks = [outputs.rows(index) for index in integration.blocks(outputs)]
        mean, expected, error = joined(
            likelihood.class_expectations(
                block, integration.chunks(block), integration.num_points, integration.seed, **noise
            )
            for block in blocks
        )
    else:
        tempered = []
        for index in integration.chunks(outputs):
            draws = outputs.rows(index).draws(integration.num_points, integration.seed)
            tempered.append(averaged(likelihood.class_probs(draws, **noise), temperature))
        mean, expected = (torch.cat(values) for values in zip(*tempered, strict=True))
    return decomposed(mean, expected, likelihood, kind, error)


def decomposed(
    probs: Float[Tensor, "N C"],
    expected_entropy: Float[Tensor, " N"],
    likelihood: Likelihood,
    kind: type[ClassPrediction] = ClassPrediction,
    error: Float[Tensor, " N"] | None = None,
) -> ClassPrediction:
    """The prediction with given class probabilities ``[N, K]`` and expected entropy ``[N]``."""
    return parted(probs, class_entropy(probs), expected_entropy, likelihood, kind, error)


def parted(
    probs: Float[Tensor, "N C"],
    total: Float[Tensor, " N"],
    expected_entropy: Float[Tensor, " N"],
    likelihood: Likelihood,
    kind: type[ClassPrediction] = ClassPrediction,
    error: Float[Tensor, " N"] | None = None,
) -> ClassPrediction:
    """The same with the entropy of the probabilities, where it is known already."""
    # Jensen's inequality holds for the average over any set of draws; the clamp only removes rounding
    epistemic = (total - expected_entropy).clamp_min(0.0)
    return kind(total, total - epistemic, epistemic, probs, likelihood, error=error)
