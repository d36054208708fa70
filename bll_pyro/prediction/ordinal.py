"""Predictions of ordered classes, which also have a distribution function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.checks import share
from bll_pyro.prediction.base import as_targets
from bll_pyro.prediction.classes import ClassPrediction
from bll_pyro.prediction.intervals import IntervalKind, check_kind, randomised_pit
from bll_pyro.scope import own_modes

ROUNDING = 1e-6  # of a sum of probabilities


@dataclass(frozen=True, eq=False)
class OrdinalPrediction(ClassPrediction):
    """Posterior predictive over classes in an order."""

    @property
    def cumulative(self) -> Float[Tensor, "N C"]:
        """``P(y <= c)`` of each class, ``[N, C]``."""
        return self.probs.cumsum(-1)

    @own_modes(gradients=False)
    def cdf(self, labels: Any) -> Float[Tensor, " N"]:
        """``P(y <= label)`` ``[N]``."""
        return self.cdf_of_number(as_targets(labels, self).long())

    def cdf_of_number(self, numbers: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """``P(y <= class)`` ``[N]`` of class numbers; 0 below 0."""
        index = numbers.to(self.probs.device)
        reached = self.cumulative.gather(-1, index.clamp_min(0)[:, None]).squeeze(-1)
        return torch.where(index < 0, torch.zeros_like(reached), reached)

    @own_modes(gradients=False)
    def quantile(self, q: float) -> Int[Tensor, " N"] | NDArray[Any]:
        """Smallest class whose distribution function reaches ``q``, ``[N]``, in the form of ``label``."""
        share(q, "q", "quantile")
        return self._labels((self.cumulative < q - ROUNDING).sum(-1).clamp_max(self.probs.shape[1] - 1))

    @own_modes(gradients=False)
    def interval(
        self, prob: float = 0.9, kind: IntervalKind = "equal_tailed"
    ) -> tuple[Int[Tensor, " N"] | NDArray[Any], Int[Tensor, " N"] | NDArray[Any]]:
        """Neighbouring classes with probability ``prob`` or more: the first and the last ``[N]``, in the form of ``label``.

        ``"equal_tailed"``: between two quantiles; ``"hdi"``: the fewest, and of equals the most probable ones.
        """
        share(prob, "prob", "interval")
        if check_kind(kind) == "equal_tailed":
            return self.quantile((1 - prob) / 2), self.quantile((1 + prob) / 2)
        num_classes = self.probs.shape[1]
        below = self.cumulative - self.probs
        held = self.cumulative[:, None, :] - below[:, :, None]  # [N, first, last]
        first, last = torch.arange(num_classes)[:, None], torch.arange(num_classes)
        size = (last - first + 1).to(held)
        allowed = (last >= first).to(held.device) & (held >= prob - ROUNDING)
        score = torch.where(allowed, size - held, torch.inf).flatten(1)
        best = score.argmin(-1)
        return self._labels(best // num_classes), self._labels(best % num_classes)

    @own_modes(gradients=False)
    def crps(self, targets: Any) -> Float[Tensor, " N"]:
        """Ranked probability score ``sum_c (P(y <= c) - [c >= target])^2`` of each label, in classes (Epstein 1969)."""
        labels = self.likelihood.check_targets(as_targets(targets, self)).to(self.probs.device)
        reached = torch.arange(self.probs.shape[1], device=labels.device) >= labels[:, None]
        return (self.cumulative - reached.to(self.probs)).square().sum(-1)

    @own_modes(gradients=False)
    def pit(self, targets: Any, seed: int = 0) -> Float[Tensor, " N"]:
        """Probability integral transform of each label, made uniform by seeded random numbers (Smith 1985)."""
        labels = self.likelihood.check_targets(as_targets(targets, self))
        return randomised_pit(self.cdf_of_number(labels - 1), self.cdf_of_number(labels), seed)
