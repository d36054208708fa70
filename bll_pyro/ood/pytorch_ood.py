"""Detectors of the package ``pytorch-ood`` as scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import switch
from bll_pyro.ood.base import Score, View
from bll_pyro.posterior import Posterior
from bll_pyro.scope import isolated


@dataclass(frozen=True, eq=False)
class PytorchOOD(Score):
    """A detector of features from ``pytorch-ood`` (0.4, the extra ``bll-pyro[ood]``), for the alarm of a :class:`Detector`.

    It sees the features as the backbone gives them, and classes as labels; targets of other kinds count as one class. The
    given detector is not changed: the calibration fits a copy. It is not made of numbers that could be written to a file, so a
    fit with it can be neither saved nor exported.

    Parameters
    ----------
    detector
        An object with ``predict_features(features [N, D])``, scores ``[N]`` that are larger further out, and, where it is fitted
        to training rows, ``fit_features(features, labels)``; such as ``pytorch_ood.detector.ViM(...)``.
    is_fitted
        Whether it has been fitted already; set by the calibration.
    """

    detector: Any
    is_fitted: bool = False

    def __post_init__(self) -> None:
        if not callable(getattr(self.detector, "predict_features", None)):
            raise TypeError(
                "PytorchOOD(detector=...): expected a detector with predict_features, such as "
                f"pytorch_ood.detector.KNN(None), got {type(self.detector).__name__}; for another one write a subclass of "
                "bll.ood.Score"
            )
        switch(self.is_fitted, "is_fitted", "PytorchOOD")

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return not self.is_fitted and callable(getattr(self.detector, "fit_features", None))

    def of(self, view: View) -> Float[Tensor, " N"]:
        with isolated(), torch.no_grad():  # code of others may draw random numbers
            scores = torch.as_tensor(self.detector.predict_features(view.features))
        if scores.shape != view.features.shape[:1]:
            raise ValueError(
                f"PytorchOOD: expected one score a row, shape [{len(view.features)}], from {type(self.detector).__name__}, got "
                f"{list(scores.shape)}; use a detector whose predict_features gives outlier scores"
            )
        return scores.detach().to(view.features.device)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        if not self.needs_training_rows:
            return self
        own = copy.deepcopy(self.detector)
        labels = targets if posterior.layer.likelihood.is_discrete else targets.new_zeros(len(targets))
        with isolated():
            own.fit_features(features, labels.long())
        return replace(self, detector=own, is_fitted=True)
