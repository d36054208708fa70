"""Mahalanobis distances of features to those of the training rows.

Rows are of unit length (``normalize=True``; Mahalanobis++, Müller and Hein, ICML 2025), or standardised as in the fit: see
:mod:`bll_pyro.ood.coordinates`. The distances need training rows:
``Detector(Mahalanobis()).calibrate(fit, inputs, train=(inputs, targets))``. Prefer rows on which the backbone was not
trained: on its own training rows the features of a class vary less, and new rows then seem further out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import positive, switch
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import row_coordinates
from bll_pyro.posterior import Posterior


@dataclass(frozen=True, eq=False)
class _Distance(Score):
    ridge: float = 1e-3
    normalize: bool = True
    means: Tensor | None = field(default=None, repr=False)
    whitening: Tensor | None = field(default=None, repr=False)
    absent: ClassVar[dict[str, Any]] = {"normalize": False}

    def __post_init__(self) -> None:
        positive(self.ridge, "ridge", type(self).__name__)
        switch(self.normalize, "normalize", type(self).__name__)

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.means is None


@dataclass(frozen=True, eq=False)
class Mahalanobis(_Distance):
    """Squared distance to the nearest class, ``min_c (h - m_c)' S^-1 (h - m_c)`` (Lee et al. 2018).

    Without classes all rows count as one class.

    Parameters
    ----------
    ridge
        Positive number, as a share of the mean variance, that is added to the diagonal of the covariance, so that it is
        invertible with constant features.
    normalize
        Rows of unit length, or standardised ones, which also see how large the features are. On features of a network the
        size often says more of the input's contrast than of its strangeness.
    means, whitening
        Class means ``[C, D]``, and ``S^-1/2 [D, D]`` of the covariance within classes; set by the calibration.
    """

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.means is not None and self.whitening is not None
        white = row_coordinates(view.posterior, view.features, self.normalize).float() @ self.whitening.to(
            view.features.device
        )
        centres = self.means.to(white) @ self.whitening.to(white)
        return torch.stack([(white - centre).square().sum(-1) for centre in centres]).amin(0)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        rows = row_coordinates(posterior, features, self.normalize).double()
        labels = _labels(posterior, targets)
        classes, index = labels.unique(return_inverse=True)
        counts = torch.bincount(index).double()
        means = rows.new_zeros(len(classes), rows.shape[1]).index_add_(0, index, rows) / counts[:, None]
        whitening = _whitening(rows - means[index], self.ridge)
        return replace(self, means=means.float(), whitening=whitening.float())


@dataclass(frozen=True, eq=False)
class RelativeMahalanobis(_Distance):
    """Squared distance to the nearest class minus that to all rows as one class (Ren et al. 2021).

    Parameters
    ----------
    ridge, normalize
        As in :class:`Mahalanobis`.
    means, whitening
        Class means ``[C, D]`` and ``S^-1/2 [D, D]`` within classes; set by the calibration.
    background_mean, background_whitening
        Mean ``[1, D]`` and ``S^-1/2 [D, D]`` of all training rows; set by the calibration.
    """

    background_mean: Tensor | None = field(default=None, repr=False)
    background_whitening: Tensor | None = field(default=None, repr=False)

    def of(self, view: View) -> Float[Tensor, " N"]:
        nearest = Mahalanobis(self.ridge, self.normalize, self.means, self.whitening)
        background = Mahalanobis(self.ridge, self.normalize, self.background_mean, self.background_whitening)
        return nearest.of(view) - background.of(view)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        if not posterior.layer.likelihood.is_discrete:
            raise TypeError(
                f"RelativeMahalanobis: expected classes, got {posterior.layer.likelihood!r}; use Mahalanobis()"
            )
        nearest = Mahalanobis(self.ridge, self.normalize).fitted(posterior, features, targets, score_rows)
        rows = row_coordinates(posterior, features, self.normalize).double()
        mean = rows.mean(0, keepdim=True)
        whitening = _whitening(rows - mean, self.ridge)
        return replace(
            self,
            means=nearest.means,
            whitening=nearest.whitening,
            background_mean=mean.float(),
            background_whitening=whitening.float(),
        )


def _labels(posterior: Posterior, targets: Tensor) -> Tensor:
    if posterior.layer.likelihood.is_discrete:
        return targets
    return torch.zeros(len(targets), dtype=torch.long, device=targets.device)


def _whitening(centred: Tensor, ridge: float) -> Tensor:
    """Symmetric ``(S + ridge mean(diag S) I)^-1/2`` of centred rows."""
    covariance = centred.mT @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    floor = ridge * covariance.diagonal().mean().clamp_min(torch.finfo(covariance.dtype).tiny)
    return (vectors / (values.clamp_min(0) + floor).sqrt()) @ vectors.mT
