"""Several scores as one, by their p-values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.declaration import LATER
from bll_pyro.ood.base import Score, View, several, weights_of
from bll_pyro.posterior import Posterior

TAIL = 0.1  # share of the reference rows from which the tail of a score is found
RESOLUTION = 1e-6  # of the largest score: differences below it are rounding


@dataclass(frozen=True, eq=False)
class Fisher(Score):
    r"""Sum over M scores of minus the log of the p-value, :math:`-\sum_m \log p_m` (Fisher 1932).

    A p-value is the rank among the scores of reference rows, which are known and are not used for anything else. Beyond nine
    tenths of these the tail is exponential, with the median of the excesses (Pickands 1975), so that rows further out than
    every reference row still differ. So the scores need no common unit, one that says nothing adds a constant or a little
    noise, and one that is extreme decides. They depend on one another, so the sum has no chi-squared law; an alarm needs none,
    since :class:`Detector` takes its threshold from rows apart from the reference rows.

    Parameters
    ----------
    scores
        Two or more scores.
    reference
        Scores ``[M, n]`` of the reference rows, each in increasing order; set by the calibration.
    """

    scores: tuple[Score, ...]
    reference: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", several(self.scores, "Fisher"))

    @property
    def needs_training_rows(self) -> bool:
        """Whether one of the scores must see training rows first."""
        return any(score.needs_training_rows for score in self.scores)

    @property
    def needs_reference_rows(self) -> bool:
        """Whether :meth:`referenced` must be called first."""
        return self.reference is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.reference is not None
        parts = zip(self.scores, self.reference.to(view.features.device), strict=True)
        return torch.stack([surprise(known, score.of(view).double()) for score, known in parts]).sum(0)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        scores = tuple(score.fitted(posterior, features, targets, score_rows) for score in self.scores)
        return replace(self, scores=scores)

    def referenced(self, score_rows: Callable[[Score], Tensor]) -> Self:
        reference = torch.stack([score_rows(score).double() for score in self.scores])
        return replace(self, reference=reference.sort(-1).values)


@dataclass(frozen=True, eq=False)
class HarmonicMean(Score):
    r"""Groups of scores, joined by the weighted harmonic mean of what their p-values say (Wilson 2019, PNAS 116).

    A group of M scores has :math:`L_g = -M^{-1/2} \sum_m \log p_m`, and the score is :math:`\log \sum_g w_g e^{L_g}`, minus the log
    of a harmonic mean but for a constant. The root lies between scores that see the same (:math:`1 / M`) and scores that know
    nothing of one another (1), so that a group does not count more for having more parts; and a group that sees nothing takes
    little from one that does.

    Parameters
    ----------
    groups
        Two or more groups of scores, each a :class:`Fisher`.
    weights
        One positive number a group; None gives all the weight 1. A weight is a constant beside :math:`L_g`: it decides
        between groups that say about the same, and hardly matters where one is certain.
    """

    groups: tuple[Fisher, ...]
    weights: tuple[float, ...] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        groups = tuple(self.groups)
        if len(groups) < 2 or not all(isinstance(group, Fisher) for group in groups):
            raise TypeError(
                f"HarmonicMean(groups=...): expected two or more groups such as Fisher((Leverage(), Energy())), got {groups!r}"
            )
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "weights", weights_of(self.weights, len(groups), "HarmonicMean", "groups"))

    @property
    def needs_training_rows(self) -> bool:
        """Whether one of the scores must see training rows first."""
        return any(group.needs_training_rows for group in self.groups)

    @property
    def needs_reference_rows(self) -> bool:
        """Whether :meth:`referenced` must be called first."""
        return any(group.needs_reference_rows for group in self.groups)

    def of(self, view: View) -> Float[Tensor, " N"]:
        says = torch.stack([group.of(view) / len(group.scores) ** 0.5 for group in self.groups])
        weights = says.new_tensor(self.weights or (1.0,) * len(self.groups))
        return (says + weights.log()[:, None]).logsumexp(0)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        groups = tuple(group.fitted(posterior, features, targets, score_rows) for group in self.groups)
        return replace(self, groups=groups)

    def referenced(self, score_rows: Callable[[Score], Tensor]) -> Self:
        return replace(self, groups=tuple(group.referenced(score_rows) for group in self.groups))


def surprise(known: Float[Tensor, " n"], scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """``-log p`` of scores ``[N]``, of n >= 2 reference scores in increasing order."""
    n = len(known)
    num_tail = max(1, round(TAIL * n))
    start, tail = known[n - num_tail - 1], known[n - num_tail :]
    # the median of an exponential is log 2 times its mean; unlike the mean it bears a few rows that are out of place
    scale = torch.maximum((tail - start).median() / math.log(2), RESOLUTION * known.abs().amax())
    scale = scale.clamp_min(torch.finfo(known.dtype).tiny)
    num_at_least = n - torch.searchsorted(known, scores.contiguous())
    inside = math.log(n + 1) - (1 + num_at_least).to(known).log()
    beyond = math.log(n + 1) - math.log(1 + num_tail) + (scores - start) / scale
    return torch.where(scores > start, beyond, inside)
