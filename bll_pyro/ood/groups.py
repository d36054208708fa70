"""Distances to the means of small groups of training rows. No row is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.checks import count, switch
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import row_coordinates
from bll_pyro.posterior import Posterior
from bll_pyro.scope import generator

NUM_PRODUCTS = 8  # of the power method; the split is as good along any direction of large variance


@dataclass(frozen=True, eq=False)
class NearestGroup(Score):
    """Distance to the nearest mean of a small group of training rows.

    It sees what :class:`KNearestNeighbours` sees, directions away from every training row, and keeps no row. Groups are made by
    halving the rows along their direction of largest variance until another halving would make a group too small (a k-d tree
    in principal axes: Sproull 1991), so that each has ``size`` rows or more, and fewer than twice as many.

    Parameters
    ----------
    size
        Least number of rows in a group, at most the number of training rows. A mean of equal rows is that row, so groups hide
        a row only as far as others differ from it.
    normalize
        Rows of unit length, or standardised ones (:mod:`bll_pyro.ood.coordinates`).
    most_rows
        Most training rows that are used; of more a random part is.
    seed
        Seed of that choice.
    means
        Means ``[G, D]`` of the groups; set by the calibration.
    """

    size: int = 10
    normalize: bool = True
    most_rows: int = 5000
    seed: int = 0
    means: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count(self.size, "size", "NearestGroup", 2, "a group of one row is that row")
        switch(self.normalize, "normalize", "NearestGroup")
        count(self.most_rows, "most_rows", "NearestGroup", self.size, "use the rows of a group at least")
        generator(self.seed)  # raises for what is no seed

    @property
    def needs_training_rows(self) -> bool:
        """Whether :meth:`fitted` must be called with training rows first."""
        return self.means is None

    def of(self, view: View) -> Float[Tensor, " N"]:
        assert self.means is not None
        new = row_coordinates(view.posterior, view.features, self.normalize).float()
        means = self.means.to(new)
        # |a - b|^2 by one product of matrices; rounding can make it negative where a = b
        nearest = (means.square().sum(-1) - 2 * (new @ means.mT)).amin(-1)
        return (nearest + new.square().sum(-1)).clamp_min(0.0).sqrt()

    def fitted(
        self, posterior: Posterior, features: Tensor, targets: Tensor, score_rows: Callable[[Score], Tensor]
    ) -> Self:
        if len(features) < self.size:
            raise ValueError(
                f"NearestGroup: expected at least size = {self.size} training rows, got {len(features)}; add rows or lower size"
            )
        kept = torch.randperm(len(features), generator=generator(self.seed))[: self.most_rows]
        rows = row_coordinates(posterior, features[kept.to(features.device)], self.normalize).double()
        means = torch.stack([rows[index].mean(0) for index in groups(rows, self.size)])
        return replace(self, means=means.float())


def groups(rows: Float[Tensor, "N D"], size: int) -> list[Int[Tensor, " n"]]:
    """Places of the rows of each group, of ``size`` to ``2 size - 1`` rows."""
    whole = [torch.arange(len(rows), device=rows.device)]
    found = []
    while whole:
        index = whole.pop()
        if len(index) < 2 * size:
            found.append(index)
        else:
            whole += index[_main_direction(rows[index]).argsort()].tensor_split(2)
    return found


def _main_direction(rows: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Places of rows along their direction of largest variance, by the power method from the row that is furthest out."""
    centred = rows - rows.mean(0)
    along = centred @ centred[centred.square().sum(-1).argmax()]
    for _ in range(NUM_PRODUCTS):
        direction = centred.mT @ along
        along = centred @ (direction / direction.norm().clamp_min(torch.finfo(rows.dtype).tiny))
    return along
