"""The interface of scores, and the view of a fit that they read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import ClassVar, Self

from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.checks import is_number, plain_numbers
from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import Outputs
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Prediction, predict
from bll_pyro.prediction.recalibration import Recalibration


class View:
    """Features of some rows with a fit's outputs and prediction for them, which are computed on first use.

    Parameters
    ----------
    features
        Features ``[N, D]`` of the rows.
    posterior, recalibration
        Posterior and recalibration of the fit.
    """

    def __init__(
        self,
        features: Float[Tensor, "N D"],
        posterior: Posterior,
        recalibration: Recalibration | None = None,
    ) -> None:
        self.features, self.posterior, self.recalibration = features, posterior, recalibration

    @cached_property
    def outputs(self) -> Outputs:
        """Distribution of the outputs ``[N, K]``."""
        return self.posterior.outputs(self.features)

    @cached_property
    def prediction(self) -> Prediction:
        """Posterior predictive of the rows, with the default integration."""
        return predict(self.posterior, self.features, recalibration=self.recalibration)

    def refuse(self, score: Score, expected: str, remedy: str) -> TypeError:
        """The error of a score that is not defined for this fit."""
        return TypeError(
            f"{type(score).__name__}: expected {expected}, got {self.posterior.layer.likelihood!r}; {remedy}"
        )


class Score(Declaration):
    """A score of rows: larger is further from the training distribution."""

    family: ClassVar[str] = "ood"

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return False

    @property
    def needs_reference_rows(self) -> bool:
        """Whether :meth:`referenced` must be called, after :meth:`fitted`, with known rows that are used for nothing else."""
        return False

    @abstractmethod
    def of(self, view: View) -> Float[Tensor, " N"]:
        """Scores ``[N]`` of the rows of a view."""

    def fitted(
        self,
        posterior: Posterior,
        features: Float[Tensor, "N D"],
        targets: Shaped[Tensor, "N *T"],
        score_rows: Callable[[Score], Tensor],
    ) -> Self:
        """The same score with its statistics of the training rows.

        Parameters
        ----------
        posterior
            Posterior of the fit.
        features, targets
            Training rows ``[N, D]`` and their checked targets ``[N]`` or ``[N, T]``.
        score_rows
            Returns the scores ``[N]`` of the training rows by another score.
        """
        return self

    def referenced(self, score_rows: Callable[[Score], Tensor]) -> Self:
        """The same score with its statistics of the reference rows, whose scores ``[n]`` the function returns."""
        return self


def several(scores: Iterable[Score], owner: str) -> tuple[Score, ...]:
    """The parts of a score that is made of two or more; TypeError for anything else."""
    scores = tuple(scores)
    if len(scores) < 2 or not all(isinstance(score, Score) for score in scores):
        raise TypeError(
            f"{owner}(scores=...): expected two or more scores such as Leverage(), got {scores!r}"
        )
    if nested := [score for score in scores if score.needs_reference_rows]:
        raise TypeError(
            f"{owner}(scores=...): expected scores of single rows, got a {type(nested[0]).__name__}(...) among them; "
            "name its parts instead"
        )
    return scores


def weights_of(
    weights: Iterable[float] | None, num_parts: int, owner: str, parts: str
) -> tuple[float, ...] | None:
    """A positive weight for each part of a score, or None; ValueError for anything else."""
    if weights is None:
        return None
    found: tuple[float, ...] = plain_numbers(tuple(weights))
    if len(found) != num_parts or not all(is_number(weight) for weight in found):
        raise ValueError(
            f"{owner}(weights=...): expected a positive number for each of the {num_parts} {parts}, got {found!r}"
        )
    return found
