"""What the estimators of real values and counts share: intervals, quantiles and draws of the posterior predictive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from bll_pyro.prediction import ValuePrediction
from bll_pyro.sklearn.base import BayesianLastLayer


class PredictsValues(RegressorMixin, BayesianLastLayer):
    """Base of the estimators whose predictive is a distribution over numbers."""

    def _values(self, X: Any) -> ValuePrediction:
        prediction = self._predict(X)
        assert isinstance(prediction, ValuePrediction)
        return prediction

    def predict(
        self, X: Any, return_std: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean of the posterior predictive ``[N]`` or ``[N, T]``, and its standard deviation where that is asked for.

        Parameters
        ----------
        X
            Rows ``[N, D]``.
        return_std
            Whether to return the standard deviation of the target too: noise and weights together.
        """
        prediction = self._values(X)
        mean = prediction.mean.double().cpu().numpy()
        if not return_std:
            return mean
        return mean, prediction.scale.double().cpu().numpy()

    def predict_interval(self, X: Any, coverage: float = 0.9) -> NDArray[np.float64]:
        """Central intervals of the posterior predictive, ``[N, 2]`` (``[N, T, 2]``): lower and upper end.

        Parameters
        ----------
        X
            Rows ``[N, D]``.
        coverage
            Probability of the interval, between 0 and 1.
        """
        return np.stack([end.double().cpu().numpy() for end in self._values(X).interval(coverage)], -1)

    def predict_quantiles(
        self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> NDArray[np.float64]:
        """Quantiles of the posterior predictive, one column each: ``[N, Q]`` (``[N, T, Q]``).

        Parameters
        ----------
        X
            Rows ``[N, D]``.
        quantiles
            Probabilities between 0 and 1.
        """
        prediction = self._values(X)
        return np.stack([prediction.quantile(float(q)).double().cpu().numpy() for q in quantiles], -1)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> NDArray[np.float64]:
        """Targets drawn from the posterior predictive, ``[N, n_samples]`` (``[N, T, n_samples]``).

        Parameters
        ----------
        X
            Rows ``[N, D]``.
        n_samples
            Number of draws of each row.
        random_state
            Their seed.
        """
        draws = self._values(X).sample(n_samples, seed=random_state).double().cpu().numpy()
        return np.moveaxis(draws, 0, -1)
