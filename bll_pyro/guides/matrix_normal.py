"""A Kronecker product of a covariance over outputs and one over columns, never multiplied out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.guides.base import Begins, Guide, LatentGaussianGuide, Start, relative_tril


class MatrixNormalGuide(LatentGaussianGuide):
    """Pyro guide with the Cholesky factors ``[K, K]`` and ``[P, P]``, relative to the start."""

    row_scale: Tensor
    column_scale: Tensor

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, start)
        num_outputs, num_columns = start.loc.shape
        # the product r_k c_p that is closest to the scales at the start, in logarithms
        log_scale = start.scale.log()
        log_columns = log_scale.mean(0)
        self.register_buffer("row_scale", (log_scale - log_columns).mean(1).exp())
        self.register_buffer("column_scale", log_columns.exp())
        self.row_tril = torch.nn.Parameter(start.loc.new_zeros(num_outputs, num_outputs))
        self.column_tril = torch.nn.Parameter(start.loc.new_zeros(num_columns, num_columns))

    def weights(self, loc: Float[Tensor, "K P"]) -> gaussian.MatrixNormal:
        """Gaussian of the weights."""
        rows = relative_tril(self.row_tril, self.row_scale)
        return gaussian.MatrixNormal(loc, rows, relative_tril(self.column_tril, self.column_scale))


@dataclass(frozen=True, eq=False)
class MatrixNormal(Guide):
    """Matrix-normal weights: covariance ``U U' x V V'`` over outputs and columns, ``K^2 + P^2`` numbers.

    Outputs are correlated, and the covariance over the columns is full, but the same for every output up to a factor.
    For several real-valued targets with one noise scale the exact posterior has this form. The family does not change
    under a rotation of the features; it is trained in their principal axes.
    """

    begins: ClassVar[Begins] = "independent"

    @property
    def can_rotate(self) -> bool:
        """True: in other axes it is the same family."""
        return True

    def build(self, model: Any, start: Start) -> MatrixNormalGuide:
        """The guide of ``model``."""
        return MatrixNormalGuide(model, start)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """``K^2 + P^2``, and the mean."""
        return num_outputs**2 + num_columns**2 + num_outputs * num_columns
