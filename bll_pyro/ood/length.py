"""How unusual the length of the features is, too long or too short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import lengths
from bll_pyro.posterior import Posterior

TAIL = 0.05  # share of the training rows beyond each of the two outer quantiles
RESOLUTION = 1e-6  # of the median length: differences below it are rounding


@dataclass(frozen=True, eq=False)
class Length(Score):
    r"""Distance of :math:`\lVert h / s \rVert` from the median of the training rows, in units of its spread on that side.

    The spread is the distance from the median to the 5% quantile for shorter rows, and to the 95% quantile for longer ones.
    A row is its direction and its length: scores of rows of unit length judge the one, this score judges the other. For some
    networks unknown inputs have shorter features, for others longer ones, so it looks both ways; :class:`FeatureNorm` looks
    one way.

    Parameters
    ----------
    quantiles
        Lengths ``[3]`` of training rows: 5% quantile, median, 95% quantile; set by the calibration.
    """

    quantiles: Tensor | None = field(default=None, repr=False)

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.quantiles is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.quantiles is not None
        size = lengths(view.posterior, view.features)[:, 0].double()
        low, middle, high = self.quantiles.to(size)
        least = (RESOLUTION * middle).clamp_min(torch.finfo(size.dtype).tiny)
        shorter, longer = (middle - low).maximum(least), (high - middle).maximum(least)
        return torch.where(size < middle, (middle - size) / shorter, (size - middle) / longer)

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        size = lengths(posterior, features)[:, 0].double().sort().values
        # of the sorted lengths, since torch.quantile refuses more than 16 million rows
        places = [round(share * (len(size) - 1)) for share in (TAIL, 0.5, 1 - TAIL)]
        return replace(self, quantiles=size[places])
