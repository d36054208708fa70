"""What all estimators share: parameters, the fit, and predictions on checked rows."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import nn

from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.features.tables import Table, table_of
from bll_pyro.fitting import AUTOMATIC, Fit
from bll_pyro.fitting import fit as fit_layer
from bll_pyro.inference import SVI, Inference
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction import Prediction
from bll_pyro.prediction.base import PARTS, framed
from bll_pyro.priors import Normal, Prior
from bll_pyro.sklearn.parameters import DeclaredParameters

DTYPES = (np.float64, np.float32)  # of the columns: others become the first


class BayesianLastLayer(DeclaredParameters):
    """Base of the estimators: a last layer on the columns of a table, or on features that a backbone makes of them."""

    _num_features = 256  # random features of backbone="automatic": with more of them SVI takes longer

    def __init__(
        self,
        backbone: nn.Module | RandomFeatures | str | None = "automatic",
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
        inference: Inference | None = None,
        *,
        standardize: bool | str = True,
        calibration: float | str | None = "automatic",
        store: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbone = backbone
        self.prior = prior
        self.likelihood = likelihood
        self.inference = inference
        self.standardize = standardize
        self.calibration = calibration
        self.store = store
        self.random_state = random_state

    @abstractmethod
    def _default_likelihood(self) -> Likelihood:
        """The likelihood that None stands for."""

    def _default_inference(self, likelihood: Likelihood, prior: Prior) -> Inference:
        """The inference that None stands for."""
        return SVI()

    def _declared(self, name: str) -> Any:
        if name == "backbone" and isinstance(self.backbone, str):
            if self.backbone != "automatic":
                raise ValueError(
                    'backbone: expected "automatic", bll.random_features(...), a torch module, or None for the columns themselves, '
                    f"got {self.backbone!r}"
                )
            return RandomFeatures(self._num_features)
        return super()._declared(name)

    def _standing_for_none(self, name: str) -> Any:
        if name == "prior":
            return Normal()
        if name == "inference":
            return SVI()
        return None

    def _chosen_likelihood(self) -> Likelihood:
        """The likelihood, or what None stands for."""
        return self._default_likelihood() if self.likelihood is None else self.likelihood

    def _chosen_inference(self) -> Inference:
        """The inference, or what None stands for with this likelihood and prior."""
        if self.inference is not None:
            return self.inference
        return self._default_inference(self._chosen_likelihood(), self._declared("prior"))

    def _checked(self, X: Any, *y: Any, **options: Any) -> Any:
        """Rows, and targets where there are some, as scikit-learn checks them."""
        return validate_data(
            self,
            X,
            *y,
            accept_sparse="csr",
            dtype=DTYPES,
            ensure_2d=not isinstance(self.backbone, nn.Module),
            allow_nd=True,
            **options,
        )

    def _fit_targets(self, X: Any, targets: NDArray[Any], sample_weight: Any, exposure: Any = None) -> Self:
        """Fit on checked columns and on targets."""
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        likelihood, prior = self._chosen_likelihood(), self._declared("prior")
        layer = LastLayer(likelihood, prior, standardize=self.standardize)  # type: ignore[arg-type]
        made = fit_layer(
            layer,
            (X, targets),
            self._declared("backbone"),
            self._chosen_inference(),
            sample_weight=weight,
            exposure=exposure,
            seed=self._seed(),
            store=self.store,
            calibration=self._calibration(),
        )
        names = getattr(self, "feature_names_in_", None)  # scikit-learn has read the frame
        self.fit_: Fit = replace(made, feature_names=None if names is None else tuple(map(str, names)))
        return self

    def _seed(self) -> int:
        """None is 0, so that the same rows give the same fit."""
        if self.random_state is None or isinstance(self.random_state, numbers.Integral):
            return int(self.random_state or 0)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _calibration(self) -> Any:
        if isinstance(self.calibration, str):
            if self.calibration != "automatic":
                raise ValueError(
                    f'calibration: expected "automatic", a share of the rows such as 0.1, or None, got {self.calibration!r}'
                )
            return AUTOMATIC
        return self.calibration

    def _rows(self, X: Any) -> NDArray[Any]:
        """Checked columns of new rows."""
        check_is_fitted(self, "fit_")
        checked: NDArray[Any] = self._checked(X, reset=False)
        return checked

    def _predict(self, X: Any) -> Prediction:
        """The posterior predictive of new rows."""
        rows = self._rows(X)
        return self.fit_.predict(rows)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def uncertainty(self, X: Any) -> Any:
        """Total, aleatoric and epistemic uncertainty of each row: nats for classes, else variances in squared units.

        Parameters
        ----------
        X
            Rows ``[N, D]``.

        Returns
        -------
        DataFrame
            Columns ``total``, ``aleatoric`` and ``epistemic``, which add up (``total_0``, ... for several targets). It is of the
            library of ``X``, with its index; of pandas where ``X`` is no frame.
        """
        prediction = self._predict(X)
        return framed(table_of(X, "X") or Table(), {name: getattr(prediction, name) for name in PARTS})
