"""Conformal sets and intervals on top of a fit: calibrated once on held-out rows, then for any inputs.

Coverage is of finite samples: over calibration rows and a new row that are exchangeable, the set or interval holds the
target with probability at least ``1 - alpha``, however wrong the model is (Vovk et al. 2005). A better model gives smaller
ones. Coverage is over rows, not for each class or kind of row.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from bll_pyro.calibrated import Calibrated
from bll_pyro.conformal.intervals import normalized_residual_interval, normalized_residual_scores
from bll_pyro.conformal.sets import aps_scores, lac_scores, own_scores, prediction_sets
from bll_pyro.conformal.thresholds import conformal_quantile
from bll_pyro.declaration import Declaration
from bll_pyro.likelihoods import Likelihood
from bll_pyro.metrics.arrays import Array
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit


class SetScore(Declaration):
    """How badly a class fits a row."""

    family: ClassVar[str] = "conformal"

    @abstractmethod
    def of(self, probs: Tensor, new: bool = True) -> Array:
        """Scores ``[N, K]`` of every class, of new rows or of those of the calibration."""


@dataclass(frozen=True, eq=False)
class LAC(SetScore):
    """``1 - p_k``: the smallest sets on average, now and then an empty one (Sadinle et al. 2019)."""

    def of(self, probs: Tensor, new: bool = True) -> Array:
        return lac_scores(probs)


@dataclass(frozen=True, eq=False)
class APS(SetScore):
    """Probability of the classes down to class k: sets grow with the difficulty of the row (Romano et al. 2020).

    Parameters
    ----------
    seed
        Of the paper's uniform draw for each row, which makes coverage exact; by it, a row's set depends on its place in the
        batch. None takes the probability of class k as a whole: nothing is random, and coverage is higher where scores tie
        (the least probable class of every row has the score 1).
    """

    seed: int | None = 0

    def of(self, probs: Tensor, new: bool = True) -> Array:
        # rows of the calibration and new rows need draws of their own, or they would not be exchangeable
        return aps_scores(probs, None if self.seed is None else generator(2 * self.seed + int(new)))


class Interval(NamedTuple):
    """Lower and upper ends in the shape of the targets and in their units."""

    lower: Tensor
    upper: Tensor


class _Conformal(Calibrated):
    """What sets and intervals share: an allowed share of misses, and a threshold of scores that keeps it."""

    family: ClassVar[str] = "conformal"
    takes: ClassVar[str]  # kind of targets
    remedy: ClassVar[str]
    alpha: float

    def _check_alpha(self) -> None:
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 < self.alpha < 1:
            raise ValueError(
                f"{type(self).__name__}(alpha=...): expected a share of misses between 0 and 1, got {self.alpha!r}; 10 % is 0.1"
            )

    @abstractmethod
    def _fits(self, likelihood: Likelihood) -> bool:
        """Whether targets are of the kind."""

    @abstractmethod
    def _own_scores(self, prediction: Any, targets: Any) -> Array:
        """How badly each target fits its row, ``[N]``, or ``[N, T]`` where every target has a threshold of its own."""

    def calibrate(self, fit: Fit, inputs: Any, targets: Any) -> Self:
        """Find the threshold on rows that the fit has not seen; returns a copy, for use with this fit.

        Raises
        ------
        ValueError
            For fewer than ``1 / alpha - 1`` rows, or targets that don't fit.
        TypeError
            For a fit of another kind of targets.
        """
        likelihood = fit.layer.likelihood
        if not self._fits(likelihood):
            raise TypeError(
                f"{type(self).__name__}: expected a fit of {self.takes}, got {likelihood!r}; {self.remedy}"
            )
        scores = self._own_scores(fit.predict(inputs), targets)
        threshold = (
            conformal_quantile(scores, self.alpha)
            if scores.ndim == 1
            else tuple(conformal_quantile(column, self.alpha) for column in scores.T)
        )
        found: Any = {"threshold": threshold, "fingerprint": fit.fingerprint}
        return replace(self, **found).bound(fit)


@dataclass(frozen=True, eq=False)
class PredictionSets(_Conformal):
    """Sets of classes that hold the true one with probability at least ``1 - alpha``.

    Parameters
    ----------
    score
        ``LAC()`` (default) or ``APS()``.
    alpha
        Allowed share of misses.
    allow_empty
        False puts the class of the lowest score into sets that would be empty.
    threshold
        Score up to which a class is in the set; found by :meth:`calibrate`.
    """

    score: SetScore = LAC()
    alpha: float = 0.1
    allow_empty: bool = True
    threshold: float | None = None
    takes: ClassVar[str] = "classes"
    remedy: ClassVar[str] = "use PredictionIntervals for real values"

    def __post_init__(self) -> None:
        if not isinstance(self.score, SetScore):
            raise TypeError(
                f"PredictionSets(score=...): expected bll.conformal.LAC() or APS(), got {self.score!r}"
            )
        self._check_alpha()

    def _fits(self, likelihood: Likelihood) -> bool:
        return likelihood.is_discrete

    def _own_scores(self, prediction: Any, targets: Any) -> Array:
        return own_scores(self.score.of(prediction.probs, new=False), targets)

    def predict(self, inputs: Any) -> Tensor:
        """Sets ``[N, K]``, true where the class is in the set of the row."""
        fit = self.check_bound()
        assert self.threshold is not None
        scores = self.score.of(fit.predict(inputs).probs)
        return torch.from_numpy(prediction_sets(scores, self.threshold, allow_empty=self.allow_empty))


@dataclass(frozen=True, eq=False)
class PredictionIntervals(_Conformal):
    """Intervals ``mean -+ threshold * scale`` that hold the target with probability at least ``1 - alpha``.

    ``scale`` is the standard deviation of the predictive, so that intervals are as wide as the fit is unsure (normalised
    residuals: Papadopoulos et al. 2008; Lei et al. 2018). Several targets have a threshold each, and each its own coverage.

    Parameters
    ----------
    alpha
        Allowed share of misses.
    threshold
        Half width in predicted standard deviations, one for each target; found by :meth:`calibrate`.
    """

    alpha: float = 0.1
    threshold: tuple[float, ...] | None = None
    takes: ClassVar[str] = "real values or counts"
    remedy: ClassVar[str] = "use PredictionSets for classes"

    def __post_init__(self) -> None:
        self._check_alpha()

    def _fits(self, likelihood: Likelihood) -> bool:
        return not (likelihood.is_discrete or likelihood.is_binary)

    def _own_scores(self, prediction: Any, targets: Any) -> Array:
        values = prediction.mixture.likelihood.check_targets(torch.as_tensor(targets))
        loc, scale = _by_target(prediction)
        return normalized_residual_scores(loc, scale, values)

    def predict(self, inputs: Any) -> Interval:
        """Ends of the intervals, ``[N]`` or ``[N, T]`` each."""
        fit = self.check_bound()
        assert self.threshold is not None
        prediction = fit.predict(inputs)
        loc, scale = _by_target(prediction)
        ends = [
            normalized_residual_interval(loc[:, t], scale[:, t], threshold)
            for t, threshold in enumerate(self.threshold)
        ]
        shape = prediction.mean.shape
        lower, upper = (
            torch.stack([torch.from_numpy(pair[i]) for pair in ends], -1).view(shape) for i in (0, 1)
        )
        return Interval(lower, upper)


def _by_target(prediction: Any) -> tuple[Tensor, Tensor]:
    """Mean and scale as ``[N, T]``."""
    return prediction.mean.reshape(len(prediction), -1), prediction.scale.reshape(len(prediction), -1)
