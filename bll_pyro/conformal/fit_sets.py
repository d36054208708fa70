"""Conformal sets and intervals of a fit: calibrated once on held-out rows, then for any inputs.

If calibration rows and a new row are exchangeable, the set or interval contains the target with probability at least
``1 - alpha``, for any sample size and any model (Vovk et al. 2005). A better model gives smaller sets. Coverage is
marginal over rows, not conditional on the class or on the inputs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.calibrated import Calibrated
from bll_pyro.checks import fitted, is_number
from bll_pyro.conformal.intervals import normalized_residual_interval, normalized_residual_scores
from bll_pyro.conformal.sets import aps_scores, lac_scores, own_scores, prediction_sets
from bll_pyro.conformal.thresholds import conformal_quantile
from bll_pyro.declaration import Declaration
from bll_pyro.likelihoods import Likelihood
from bll_pyro.metrics.arrays import Array
from bll_pyro.scope import generator, own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit


UNWEIGHTED = "coverage holds for rows that are exchangeable, each of which counts once: leave the weights out"


class SetScore(Declaration):
    """A score of each class of a row: larger for less plausible classes."""

    family: ClassVar[str] = "conformal"

    @abstractmethod
    def of(self, probs: Float[Tensor, "N K"], new: bool = True) -> Array:
        """Scores ``[N, K]`` of all classes, of new rows (``new=True``) or of calibration rows."""


@dataclass(frozen=True, eq=False)
class LAC(SetScore):
    """``1 - p_k``: the smallest sets on average, some of which may be empty (Sadinle et al. 2019)."""

    def of(self, probs: Float[Tensor, "N K"], new: bool = True) -> Array:
        return lac_scores(probs)


@dataclass(frozen=True, eq=False)
class APS(SetScore):
    """Total probability of the classes from the most probable one to class k (Romano et al. 2020).

    Sets are larger for rows that are harder to classify.

    Parameters
    ----------
    seed
        Seed of the paper's uniform draw for each row, which makes coverage exact; a row's set then depends on its place
        in the batch. None includes the whole probability of class k: nothing is random, and coverage is higher where
        scores tie (the least probable class of every row has the score 1).
    """

    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.seed is not None:
            generator(self.seed)  # raises for what is no seed

    def of(self, probs: Float[Tensor, "N K"], new: bool = True) -> Array:
        # calibration rows and new rows are exchangeable only with independent draws
        return aps_scores(probs, None if self.seed is None else generator(2 * self.seed + int(new)))


class Interval(NamedTuple):
    """Lower and upper bounds, ``[N]`` or ``[N, T]`` each, in the targets' units."""

    lower: Tensor
    upper: Tensor


class _Conformal(Calibrated):
    """The common part of sets and intervals: the allowed share of misses, and its threshold of scores."""

    family: ClassVar[str] = "conformal"
    takes: ClassVar[str]  # kind of targets, for messages
    remedy: ClassVar[str]  # end of the message for other targets
    alpha: float

    def _check_alpha(self) -> None:
        if not is_number(self.alpha, 0.0, 1.0):
            raise ValueError(
                f"{type(self).__name__}(alpha=...): expected a share of misses between 0 and 1, got {self.alpha!r}; 10 % is 0.1"
            )

    @abstractmethod
    def _fits(self, likelihood: Likelihood) -> bool:
        """Whether the likelihood has targets of the right kind."""

    @abstractmethod
    def _own_scores(self, prediction: Any, targets: Tensor) -> Array:
        """Scores of the checked targets ``[N]``, or ``[N, T]`` with one threshold per target."""

    @own_modes(gradients=False)
    def calibrate(self, fit: Fit, inputs: Any, targets: Any = None) -> Self:
        """A copy with the threshold from rows that the fit was not trained on, for use with this fit.

        Parameters
        ----------
        fit
            The fit whose predictions are to get sets or intervals.
        inputs, targets
            The rows: together in any form that :func:`bll_pyro.fit` takes, or as two arguments; counts with their exposures.

        Raises
        ------
        ValueError
            If there are fewer than ``1 / alpha - 1`` rows, the targets do not match, or rows have weights.
        TypeError
            If the fit has targets of another kind.
        """
        fitted(fit, f"{type(self).__name__}.calibrate")
        likelihood = fit.layer.likelihood
        if not self._fits(likelihood):
            raise TypeError(
                f"{type(self).__name__}: expected a fit of {self.takes}, got {likelihood!r}; {self.remedy}"
            )
        owner = f"{type(self).__name__}.calibrate"
        rows = fit.rows(inputs, targets, what=f"data of {owner}")
        rows.columns.refused(owner, weight=UNWEIGHTED)
        scores = self._own_scores(fit.head.predict(rows.data), rows.targets)
        threshold = (
            conformal_quantile(scores, self.alpha)
            if scores.ndim == 1
            else tuple(conformal_quantile(column, self.alpha) for column in scores.T)
        )
        found: Any = {"threshold": threshold, "fingerprint": fit.fingerprint}
        return replace(self, **found).bound(fit)


@dataclass(frozen=True, eq=False)
class PredictionSets(_Conformal):
    """Sets of classes that contain the true class with probability at least ``1 - alpha``.

    Parameters
    ----------
    score
        ``LAC()`` (default) or ``APS()``.
    alpha
        Allowed share of misses, between 0 and 1.
    allow_empty
        False puts the class of the lowest score into sets that would be empty.
    threshold
        Largest score of a class in the set; set by :meth:`calibrate`.
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

    def _own_scores(self, prediction: Any, targets: Tensor) -> Array:
        return own_scores(self.score.of(prediction.probs, new=False), targets)

    @own_modes(gradients=False)
    def predict(self, inputs: Any) -> Bool[Tensor, "N K"]:
        """Sets ``[N, K]``: whether each class, in the order of the columns of ``probs``, is in the row's set."""
        return self._sets(self.check_bound().predict(inputs))

    @own_modes(gradients=False)
    def predict_labels(self, inputs: Any) -> list[NDArray[Any]]:
        """The labels in the set of each row, the most probable one first: N arrays, of which some may be empty."""
        prediction = self.check_bound().predict(inputs)
        sets, order = self._sets(prediction), prediction.probs.argsort(-1, descending=True).cpu()
        labels = np.arange(sets.shape[1]) if prediction.classes is None else prediction.classes
        return [labels[row[held[row]].numpy()] for row, held in zip(order, sets, strict=True)]

    def _sets(self, prediction: Any) -> Bool[Tensor, "N K"]:
        assert self.threshold is not None
        scores = self.score.of(prediction.probs)
        return torch.from_numpy(prediction_sets(scores, self.threshold, allow_empty=self.allow_empty))


@dataclass(frozen=True, eq=False)
class PredictionIntervals(_Conformal):
    """Intervals ``mean -+ threshold * scale`` that contain the target with probability at least ``1 - alpha``.

    ``scale`` is the standard deviation of the predictive, so the width is proportional to it (normalised residuals:
    Papadopoulos et al. 2008; Lei et al. 2018). Each of several targets has its own threshold and coverage.

    Parameters
    ----------
    alpha
        Allowed share of misses, between 0 and 1.
    threshold
        Half-width in predictive standard deviations, one number per target; set by :meth:`calibrate`.
    """

    alpha: float = 0.1
    threshold: tuple[float, ...] | None = None
    takes: ClassVar[str] = "real values or counts"
    remedy: ClassVar[str] = "use PredictionSets for classes"

    def __post_init__(self) -> None:
        self._check_alpha()

    def _fits(self, likelihood: Likelihood) -> bool:
        return not (likelihood.is_discrete or likelihood.is_binary)

    def _own_scores(self, prediction: Any, targets: Tensor) -> Array:
        loc, scale = _by_target(prediction)
        return normalized_residual_scores(loc, scale, targets)

    @own_modes(gradients=False)
    def predict(self, inputs: Any) -> Interval:
        """Bounds of the intervals, ``[N]`` or ``[N, T]`` each, in the targets' units."""
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


def _by_target(prediction: Any) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Mean and scale as ``[N, T]``."""
    return prediction.mean.reshape(len(prediction), -1), prediction.scale.reshape(len(prediction), -1)
