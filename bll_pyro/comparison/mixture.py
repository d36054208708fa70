"""Mixtures of predictions: the law of total variance, or of total entropy, over the fits and within each.

========== ================================== ===============================================================
targets    aleatoric                          epistemic
========== ================================== ===============================================================
classes    ``sum_m w_m`` aleatoric of m       entropy of the mixed probabilities less the aleatoric
numbers    ``sum_m w_m`` aleatoric of m       ``sum_m w_m (`` epistemic of m ``+ (mean_m - mean)^2)``
========== ================================== ===============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count, share
from bll_pyro.classes import Classes
from bll_pyro.prediction import ClassPrediction, LabelPrediction, Prediction, ValuePrediction
from bll_pyro.prediction.labels import OfLabels, label_entropy
from bll_pyro.prediction.values import shown_values
from bll_pyro.scope import generator

NUM_BISECTIONS = 60


def weighted_average(
    values: Sequence[Float[Tensor, "*shape"]], weights: Float[Tensor, " M"]
) -> Float[Tensor, "*shape"]:
    """Weighted mean of tensors of one shape."""
    return torch.einsum("m,m...->...", weights.to(values[0]), torch.stack(list(values)))


def mix_classes(parts: Sequence[ClassPrediction], weights: Float[Tensor, " M"]) -> ClassPrediction:
    """Mixture over classes: again a prediction of classes."""
    probs = weighted_average([part.probs for part in parts], weights)
    total = torch.special.entr(probs).sum(-1)
    expected = weighted_average([part.aleatoric for part in parts], weights)
    epistemic = (total - expected).clamp_min(0.0)
    kinds = {type(part) for part in parts}
    kind = kinds.pop() if len(kinds) == 1 else ClassPrediction  # ordered classes remain ordered
    return kind(total, total - epistemic, epistemic, probs, parts[0].likelihood)


@dataclass(frozen=True, eq=False)
class _Mixture(Prediction):
    """What mixtures of labels and of numbers share.

    Parameters
    ----------
    parts, weights
        The predictions of the fits, and their weights ``[M]``.
    """

    parts: Sequence[Any]
    weights: Tensor

    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log density or probability of the mixture, jointly over the targets of a row, nats ``[N]``."""
        log_probs = torch.stack([part.log_prob(targets) for part in self.parts])
        return (log_probs + self.weights.to(log_probs).log()[:, None]).logsumexp(0)

    @classmethod
    def concat(cls, parts: list[Any]) -> Prediction:
        """Join the rows of several mixtures with the same weights."""
        joined = [type(same[0]).concat(list(same)) for same in zip(*(p.parts for p in parts), strict=True)]
        return cls.of(joined, parts[0].weights)

    @classmethod
    def of(cls, parts: Sequence[Any], weights: Tensor) -> Self:
        """Mix."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LabelMixture(_Mixture, OfLabels):
    """Mixture over labels that are 0 or 1; ``probs [N]`` or ``[N, T]``."""

    probs: Tensor

    @property
    def coding(self) -> Classes | None:
        coding: Classes | None = self.parts[0].coding
        return coding

    @classmethod
    def of(cls, parts: Sequence[LabelPrediction], weights: Tensor) -> Self:
        probs = weighted_average([part.probs for part in parts], weights)
        total = label_entropy(probs)
        epistemic = (total - weighted_average([part.aleatoric for part in parts], weights)).clamp_min(0.0)
        return cls(total, total - epistemic, epistemic, parts, weights, probs)


@dataclass(frozen=True, eq=False)
class ValueMixture(_Mixture):
    """Mixture over numbers; ``mean [N]`` or ``[N, T]`` in the user's units."""

    mean: Tensor

    @classmethod
    def of(cls, parts: Sequence[ValuePrediction], weights: Tensor) -> Self:
        mean = weighted_average([part.mean for part in parts], weights)
        aleatoric = weighted_average([part.aleatoric for part in parts], weights)
        epistemic = weighted_average(
            [part.epistemic + (part.mean - mean).square() for part in parts], weights
        )
        return cls(aleatoric + epistemic, aleatoric, epistemic, parts, weights, mean)

    @property
    def scale(self) -> Tensor:
        """Predictive standard deviation."""
        return self.total.sqrt()

    def cdf(self, values: Any) -> Tensor:
        """Distribution function at values that broadcast against the mean."""
        return weighted_average([part.cdf(values) for part in self.parts], self.weights)

    def quantile(self, q: float) -> Tensor:
        """Quantile, between those of the parts, by bisection."""
        share(q, "q", "quantile")
        ends = torch.stack([part.quantile(q) for part in self.parts])
        lower, upper = ends.amin(0), ends.amax(0)
        if self.parts[0].mixture.likelihood.is_count:
            lower = lower - 1  # whose distribution function is below q for all parts
        for _ in range(NUM_BISECTIONS):
            middle = (lower + upper) / 2
            below = self.cdf(middle) < q
            lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
        return upper.round() if self.parts[0].mixture.likelihood.is_count else (lower + upper) / 2

    def interval(self, prob: float = 0.9) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval: its lower and upper ends."""
        share(prob, "prob", "interval")
        return self.quantile((1 - prob) / 2), self.quantile((1 + prob) / 2)

    def sample(self, num_draws: int = 1000, seed: int = 0) -> Tensor:
        """Draws ``[num_draws, N]`` or ``[num_draws, N, T]``: each from one of the fits, all targets of a row together."""
        count(num_draws, "num_draws", "sample")
        random = generator(seed)
        drawn = torch.stack([part.sample(num_draws, seed + m) for m, part in enumerate(self.parts)])
        chosen = torch.multinomial(self.weights, num_draws * len(self), replacement=True, generator=random)
        index = chosen.view(num_draws, len(self)).to(drawn.device)
        index = index.view(1, num_draws, len(self), *[1] * (drawn.dim() - 3)).expand(1, *drawn.shape[1:])
        return drawn.gather(0, index).squeeze(0)

    def _shown(self, prob: float | None) -> dict[str, Any]:
        return shown_values(self, prob)
