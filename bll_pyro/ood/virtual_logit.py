"""ViM: the part of the features that the training rows hardly use, beside the outputs of the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import scaled, scales
from bll_pyro.posterior import Posterior

NEGLIGIBLE = 1e-3  # singular values of the weights, as a share of the largest, that count as 0


@dataclass(frozen=True, eq=False)
class ViM(Score):
    r"""Log odds of a virtual class whose logit is the residual, :math:`\alpha \lVert R'(h - o) \rVert - \log \sum_k e^{m_k}`.

    Wang et al. 2022 (their score is the probability of that class, which is in the same order). The residual is the length
    in the directions R that remain beside the principal ones of the training rows; o is where the mean outputs m are 0; and
    :math:`\alpha` gives the residual the mean of the largest outputs. Features are those of the backbone over the scales
    of the fit.

    Parameters
    ----------
    num_principal
        Number of principal directions, below D. None: 1000 from 2048 features on, 512 from 768 on (as in the paper), and half of
        fewer.
    origin, residual
        o ``[D]`` and :math:`\alpha R` ``[D, D - num_principal]``; set by the calibration.
    """

    num_principal: int | None = None
    origin: Tensor | None = field(default=None, repr=False)
    residual: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.num_principal is not None:
            count(self.num_principal, "num_principal", "ViM")

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.residual is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.origin is not None and self.residual is not None
        rows = scaled(view.posterior, view.features).float()
        virtual = ((rows - self.origin.to(rows)) @ self.residual.to(rows)).norm(dim=-1)
        return virtual - view.outputs.mean.logsumexp(-1)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        if not isinstance(posterior.layer.likelihood, Categorical):
            raise View(features, posterior).refuse(self, "the Categorical likelihood", "use Mahalanobis()")
        num_features = features.shape[1]
        num_principal = self.num_principal or _usual(num_features)
        if num_principal >= num_features:
            raise ValueError(
                f"ViM(num_principal=...): expected fewer directions than the {num_features} features, got {num_principal}; "
                "with a single feature use Mahalanobis(normalize=False)"
            )
        origin = _origin(posterior)
        rows = scaled(posterior, features).double() - origin
        residual = torch.linalg.eigh(rows.mT @ rows / len(rows)).eigenvectors[
            :, : num_features - num_principal
        ]
        size = (rows @ residual).norm(dim=-1).mean().clamp_min(torch.finfo(rows.dtype).tiny)
        largest = posterior.outputs(features).mean.amax(-1).double().mean()
        return replace(self, origin=origin.float(), residual=(largest / size * residual).float())


def _usual(num_features: int) -> int:
    if num_features >= 2048:
        return 1000
    return 512 if num_features >= 768 else max(1, num_features // 2)


def _origin(posterior: Posterior) -> Float[Tensor, " D"]:
    """The shortest ``h / s`` at which the mean outputs ``W h / s + b`` are 0, or nearest to it.

    A prior around 0 leaves no common part in the weights of the classes, so W has a direction that is nothing but rounding.
    """
    frame, scale = posterior.frame, scales(posterior)
    # outputs are linear: their differences along each feature, from the centre, where they are most precise
    steps = frame.center + torch.cat([torch.zeros_like(scale)[None], scale.diag()])
    means = posterior.outputs(steps).mean.double()
    weight = (means[1:] - means[0]).mT
    bias = means[0] - weight @ (frame.center.double() / scale.double())
    return -torch.linalg.pinv(weight, rtol=NEGLIGIBLE) @ bias
