"""The estimator of counts."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils import Tags

from bll_pyro.likelihoods import Likelihood, NegativeBinomial
from bll_pyro.sklearn.values import PredictsValues


class BayesianLastLayerCounter(PredictsValues):
    """A Bayesian last layer for counts: whole numbers >= 0, one a row.

    Parameters
    ----------
    backbone
        Module from rows to features ``[N, D]``, or :func:`bll_pyro.random_features`, which ``"automatic"`` (default) stands for,
        with 256 features. None takes the columns themselves.
    prior
        Prior of the weights; None is ``priors.Normal()``, whose scale is learned.
    likelihood
        ``likelihoods.NegativeBinomial()`` (None), which bears more spread than a Poisson, or ``Poisson()``.
    inference
        None is ``SVI()``.
    standardize, calibration
        As in :class:`bll_pyro.LastLayer` and :func:`bll_pyro.fit`.
    store
        Folder for features of the backbone.
    random_state
        Seed of the fit; None is 0.

    Attributes
    ----------
    fit_ : Fit
        The fit of the library, with all that it can do.
    n_features_in_, feature_names_in_
        Number of columns, and their names where ``X`` was a frame.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, exposure: Any = None) -> Self:
        """Fit to rows ``[N, D]``, counts ``[N]``, weights ``[N]``, and how much time or area each was counted over, ``[N]``."""
        X, y = self._checked(X, y, y_numeric=True, ensure_min_samples=2)
        if (y < 0).any() or (y != np.round(y)).any():
            raise ValueError(
                f"{type(self).__name__}: expected whole numbers >= 0, got targets from {y.min():g} to {y.max():g}; real values go "
                "into BayesianLastLayerRegressor"
            )
        return self._fit_targets(X, y.astype(np.int64), sample_weight, exposure)

    def _default_likelihood(self) -> Likelihood:
        return NegativeBinomial()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
