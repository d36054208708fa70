"""The classifier."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from bll_pyro.likelihoods import Bernoulli, Categorical, Likelihood
from bll_pyro.prediction import ClassPrediction, LabelPrediction, OrdinalPrediction
from bll_pyro.sklearn.base import BayesianLastLayer


class BayesianLastLayerClassifier(ClassifierMixin, BayesianLastLayer):
    """A Bayesian last layer for labels of any type.

    Parameters
    ----------
    backbone
        Module from rows to features ``[N, D]``, or :func:`bll_pyro.random_features`, which ``"automatic"`` (default) stands for,
        with 256 features. None takes the columns themselves.
    prior
        Prior of the weights; None is ``priors.Normal()``, whose scale is learned.
    likelihood
        ``likelihoods.Categorical()``, ``Ordinal(classes=[...])`` for classes in their order, or ``Bernoulli()`` for two; None is
        ``Categorical()``, whose classes are those of the targets.
    inference
        None is ``SVI()``.
    standardize, calibration
        As in :class:`bll_pyro.LastLayer` and :func:`bll_pyro.fit`; ``"automatic"`` is ``bll.AUTOMATIC``.
    store
        Folder for features of the backbone; a search over priors or guides then runs the backbone once for each set of rows.
    random_state
        Seed of the fit; None is 0, so that the same rows give the same fit.

    Attributes
    ----------
    fit_ : Fit
        The fit of the library, with all that it can do.
    classes_ : ndarray
        Labels, in the order of the columns of ``predict_proba``.
    n_features_in_, feature_names_in_
        Number of columns, and their names where ``X`` was a frame.

    Notes
    -----
    Fields of declarations are parameters: ``set_params(inference__guide=bll.guides.FullRank())``, ``{"prior__scale": [0.1, 1.0]}``.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows ``[N, D]``, labels ``[N]``, and weights ``[N]`` of the rows."""
        X, y = self._checked(X, y, ensure_min_samples=2)
        check_classification_targets(y)
        self._fit_targets(X, y, sample_weight)
        known, number = self.fit_.classes, getattr(self.fit_.layer.likelihood, "num_classes", 2)
        self.classes_: NDArray[Any] = np.arange(number).astype(y.dtype) if known is None else known
        return self

    def _default_likelihood(self) -> Likelihood:
        return Categorical()

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``[N, C]`` of the classes, averaged over the posterior."""
        prediction = self._predict(X)
        assert isinstance(prediction, ClassPrediction | OrdinalPrediction | LabelPrediction)
        probs = prediction.probs.double().cpu().numpy()
        if isinstance(self.fit_.layer.likelihood, Bernoulli):
            return np.column_stack([1 - probs, probs])
        total: NDArray[np.float64] = probs.sum(1, keepdims=True)
        return probs / total

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Their logarithms ``[N, C]``."""
        return np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label ``[N]``."""
        check_is_fitted(self, "fit_")
        chosen: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return chosen

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> NDArray[Any]:
        """Labels drawn from the posterior predictive, ``[N, n_samples]``."""
        cumulative = self.predict_proba(X).cumsum(1)
        draws = np.random.default_rng(random_state).random((len(cumulative), n_samples))
        index = (draws[:, :, None] > cumulative[:, None, :-1]).sum(-1)
        drawn: NDArray[Any] = self.classes_[index]
        return drawn
