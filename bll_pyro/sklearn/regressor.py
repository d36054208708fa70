"""The regressor."""

from __future__ import annotations

from typing import Any, Self

from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if

from bll_pyro.inference import SVI, Exact, Inference
from bll_pyro.likelihoods import Gaussian, Likelihood
from bll_pyro.priors import Normal, Prior
from bll_pyro.sklearn.values import PredictsValues


def _can_update(estimator: BayesianLastLayerRegressor) -> bool:
    """Whether the inference keeps what an update needs: :class:`Exact` does."""
    return type(estimator._chosen_inference()).update is not Inference.update


class BayesianLastLayerRegressor(PredictsValues):
    """A Bayesian last layer for real values, one or several a row.

    Parameters
    ----------
    backbone
        Module from rows to features ``[N, D]``, or :func:`bll_pyro.random_features`, which ``"automatic"`` (default) stands for,
        with 1,024 features. None takes the columns themselves.
    prior
        Prior of the weights; None is ``priors.Normal()``, whose scale is learned.
    likelihood
        ``likelihoods.Gaussian()`` (None), ``StudentT()``, ``HeteroscedasticGaussian()`` or another of real values;
        :func:`bll_pyro.choose` picks one by leave-one-out.
    inference
        None is ``Exact()`` for a Gaussian with a Normal prior, else ``SVI()``.
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
    n_features_in_, feature_names_in_
        Number of columns, and their names where ``X`` was a frame.

    Notes
    -----
    Fields of declarations are parameters: ``set_params(inference__guide=bll.guides.FullRank())``, ``{"prior__scale": [0.1, 1.0]}``.
    """

    _num_features = 1024

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows ``[N, D]``, values ``[N]`` or ``[N, T]``, and weights ``[N]`` of the rows."""
        X, y = self._values_checked(X, y, reset=True)
        return self._fit_targets(X, y, sample_weight)

    @available_if(_can_update)
    def partial_fit(self, X: Any, y: Any) -> Self:
        """Add rows to the fit, with the result of a fit on all of them; with ``Exact()`` alone, which keeps their sums.

        Prior scale, noise, centre and scale of the columns stay those of the first rows.
        """
        if not hasattr(self, "fit_"):
            return self.fit(X, y)
        X, y = self._values_checked(X, y, reset=False)
        self.fit_ = self.fit_.update((X, y))
        return self

    def _values_checked(self, X: Any, y: Any, reset: bool) -> Any:
        """Rows and values; the first rows must be two at least."""
        fewest = 2 if reset else 1
        return self._checked(X, y, reset=reset, multi_output=True, y_numeric=True, ensure_min_samples=fewest)

    def _default_likelihood(self) -> Likelihood:
        return Gaussian()

    def _default_inference(self, likelihood: Likelihood, prior: Prior) -> Inference:
        return Exact() if type(likelihood) is Gaussian and type(prior) is Normal else SVI()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags
