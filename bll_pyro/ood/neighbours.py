"""Distances to the nearest training rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count, switch
from bll_pyro.declaration import LATER
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import row_coordinates
from bll_pyro.posterior import Posterior
from bll_pyro.scope import generator

BLOCK = 1024  # stored rows that are compared at a time: a block of distances is small beside the features


@dataclass(frozen=True, eq=False)
class KNearestNeighbours(Score):
    """Distance to the k-th nearest training row (Sun et al. 2022).

    The rows are kept, and so are saved and exported with the detector: their directions where ``normalize`` is on, else all of
    them. :class:`NearestGroup` keeps means instead.

    Parameters
    ----------
    k
        Which neighbour; at most the number of training rows.
    normalize
        Rows of unit length, as in the paper, or standardised ones (:mod:`bll_pyro.ood.coordinates`).
    most_rows
        Most training rows that are kept; of more a random part is. Time and memory are proportional to it.
    seed
        Seed of that choice.
    rows
        The kept rows ``[R, D]``; set by the calibration.
    """

    k: int = 10
    normalize: bool = True
    most_rows: int = 5000
    seed: int = 0
    rows: Tensor | None = field(default=None, metadata=LATER)  # shown, since they are saved

    def __post_init__(self) -> None:
        count(self.k, "k", "KNearestNeighbours")
        switch(self.normalize, "normalize", "KNearestNeighbours")
        count(self.most_rows, "most_rows", "KNearestNeighbours", self.k, "keep at least k rows")
        generator(self.seed)  # raises for what is no seed

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.rows is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.rows is not None
        new = row_coordinates(view.posterior, view.features, self.normalize).float()
        squares = new.square().sum(-1, keepdim=True)
        nearest = new[:, :0]
        for part in self.rows.to(new).split(BLOCK):
            # |a - b|^2 by one product of matrices; rounding can make it negative where a = b
            distances = (squares + part.square().sum(-1) - 2 * (new @ part.mT)).clamp_min(0.0)
            known = torch.cat([nearest, distances], -1)
            nearest = known.topk(min(self.k, known.shape[1]), largest=False).values
        return nearest.amax(-1).sqrt()

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        if len(features) < self.k:
            raise ValueError(
                f"KNearestNeighbours: expected at least k = {self.k} training rows, got {len(features)}; add rows or lower k"
            )
        kept = torch.randperm(len(features), generator=generator(self.seed))[: self.most_rows]
        rows = row_coordinates(posterior, features[kept.to(features.device)], self.normalize)
        return replace(self, rows=rows.float())
