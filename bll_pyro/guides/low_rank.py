"""A diagonal covariance plus a few common directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.checks import count, switch
from bll_pyro.guides.base import Begins, Guide, LatentGaussianGuide, Start
from bll_pyro.scope import generator

START_SPREAD = 0.1  # variance of all directions together at the start, relative to the diagonal's


class LowRankGuide(LatentGaussianGuide):
    """Pyro guide with scales ``[K, P]`` and directions ``[K, P, R]``, both relative to the start."""

    def __init__(self, model: Any, start: Start, rank: int) -> None:
        super().__init__(model, start)
        # directions of exactly 0 have no gradient, so they start small and random
        noise = torch.randn(*start.loc.shape, rank, generator=generator(0), dtype=start.loc.dtype)
        self.log_scale = torch.nn.Parameter(torch.zeros_like(start.loc))
        self.factor = torch.nn.Parameter((START_SPREAD / rank) ** 0.5 * noise.to(start.loc.device))

    def weights(self, loc: Float[Tensor, "K P"]) -> gaussian.LowRank:
        """Gaussian of the weights."""
        scale = self.start_scale * self.log_scale.exp()
        return gaussian.LowRank(loc, scale, self.start_scale[..., None] * self.factor)


@dataclass(frozen=True, eq=False)
class LowRank(Guide):
    """A diagonal and R directions common to all weights: covariance ``diag(s^2) + F F'``, ``K P (R + 1)`` numbers.

    Parameters
    ----------
    rank
        Number R of directions.
    principal_axes
        Take the diagonal in the principal axes of the features; see :class:`Diagonal`.
    """

    begins: ClassVar[Begins] = "independent"

    rank: int = 8
    principal_axes: bool = True

    def __post_init__(self) -> None:
        count(self.rank, "rank", "LowRank", remedy="without directions use Diagonal()")
        switch(self.principal_axes, "principal_axes", "LowRank")

    @property
    def can_rotate(self) -> bool:
        """Whether the axes may be rotated."""
        return self.principal_axes

    def build(self, model: Any, start: Start) -> LowRankGuide:
        """The guide of ``model``."""
        return LowRankGuide(model, start, self.rank)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """``K P (R + 1)``."""
        return num_outputs * num_columns * (self.rank + 1)
