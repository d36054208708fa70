"""What a score is, and what it may look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Self

from torch import Tensor

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import Outputs
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Prediction, predict
from bll_pyro.prediction.recalibration import Recalibration


class View:
    """What a fit says about some rows; outputs and prediction are computed when a score first asks for them.

    Parameters
    ----------
    features
        Features ``[N, D]`` of the rows.
    posterior, recalibration
        Of the fit.
    """

    def __init__(
        self, features: Tensor, posterior: Posterior, recalibration: Recalibration | None = None
    ) -> None:
        self.features, self.posterior, self.recalibration = features, posterior, recalibration

    @cached_property
    def outputs(self) -> Outputs:
        """Distribution of the outputs ``[N, K]``."""
        return self.posterior.outputs(self.features)

    @cached_property
    def prediction(self) -> Prediction:
        """Posterior predictive, with the points of integration that are the default."""
        return predict(self.posterior, self.features, recalibration=self.recalibration)

    def refuse(self, score: Score, expected: str, remedy: str) -> TypeError:
        """The error of a score that has no meaning for this fit."""
        return TypeError(
            f"{type(score).__name__}: expected {expected}, got {self.posterior.layer.likelihood!r}; {remedy}"
        )


class Score(Declaration):
    """How strange a row is: one number, larger is further out."""

    family: ClassVar[str] = "ood"

    @property
    def needs_training_rows(self) -> bool:
        """Whether training rows have to be seen first."""
        return False

    @abstractmethod
    def of(self, view: View) -> Tensor:
        """Scores ``[N]`` of the rows of a view."""

    def fitted(
        self,
        posterior: Posterior,
        features: Tensor,
        targets: Tensor,
        score_rows: Callable[[Score], Tensor],
    ) -> Self:
        """The same score with what it takes from the training rows.

        Parameters
        ----------
        posterior
            Of the fit.
        features, targets
            Training rows ``[N, D]`` and their checked targets.
        score_rows
            Gives the scores ``[N]`` of the training rows by another score.
        """
        return self
