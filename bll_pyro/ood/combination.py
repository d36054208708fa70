"""The weighted sum of several scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.ood.base import Score, View, several, weights_of
from bll_pyro.posterior import Posterior


@dataclass(frozen=True, eq=False)
class Combination(Score):
    """Weighted sum of M scores, each standardised by its mean and standard deviation on the training rows.

    Mean and standard deviation do not come from the calibration rows, because the rate of false alarms holds only if
    these are exchangeable with new rows.

    Parameters
    ----------
    scores
        Two or more scores.
    weights
        One positive number per score; None gives all the weight 1.
    loc, scale
        Means and standard deviations ``[M]`` on the training rows; set by the calibration.
    """

    scores: tuple[Score, ...]
    weights: tuple[float, ...] | None = None
    loc: Tensor | None = field(default=None, repr=False)
    scale: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", several(self.scores, "Combination"))
        weights = weights_of(self.weights, len(self.scores), "Combination", "scores")
        object.__setattr__(self, "weights", weights)

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.loc is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.loc is not None and self.scale is not None
        values = torch.stack([score.of(view) for score in self.scores], -1)
        weights = values.new_tensor(self.weights or (1.0,) * len(self.scores))
        return ((values - self.loc.to(values)) / self.scale.to(values) * weights).sum(-1)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        scores = tuple(score.fitted(posterior, features, targets, score_rows) for score in self.scores)
        values = torch.stack([score_rows(score) for score in scores], -1)
        scale = values.std(0).clamp_min(torch.finfo(values.dtype).tiny)
        return replace(self, scores=scores, loc=values.mean(0), scale=scale)
