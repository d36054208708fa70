"""A full covariance for each output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.guides.base import Begins, Guide, LatentGaussianGuide, Start, relative_tril


class BlockDiagonalGuide(LatentGaussianGuide):
    """Pyro guide with the Cholesky factors ``[K, P, P]`` of the outputs' covariances, relative to the start."""

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, start)
        num_outputs, num_columns = start.loc.shape
        self.tril = torch.nn.Parameter(start.loc.new_zeros(num_outputs, num_columns, num_columns))

    def weights(self, loc: Float[Tensor, "K P"]) -> gaussian.BlockDiagonal:
        """Gaussian of the weights."""
        return gaussian.BlockDiagonal(loc, relative_tril(self.tril, self.start_scale))


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Guide):
    """A full covariance over the weights and the bias of each output, outputs independent: ``K P^2`` numbers.

    The family does not change under a rotation of the features; it is trained in their principal axes, where it is
    nearly diagonal.
    """

    begins: ClassVar[Begins] = "independent"

    @property
    def can_rotate(self) -> bool:
        """True: in other axes it is the same family."""
        return True

    def build(self, model: Any, start: Start) -> BlockDiagonalGuide:
        """The guide of ``model``."""
        return BlockDiagonalGuide(model, start)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """``K P^2``."""
        return num_outputs * num_columns**2
