"""What a curvature is: the shape in which the precision of the weights at the mode is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import WeightGaussian
from bll_pyro.gaussian.information import Information

MAX_BYTES = 8 * 2**30
COPIES_BYTES = (
    40  # sum over the rows, precision, its factor, the slope of its log determinant, the factor's inverse
)

Sums = tuple[Tensor, ...]


class Precision(ABC):
    """Precision of the weights at the mode, ready to be used."""

    log_det: Float[Tensor, ""]  # of the precision, differentiable in what it was made of

    @abstractmethod
    def gaussian(self, loc: Float[Tensor, "K P"]) -> WeightGaussian:
        """The Gaussian with this precision and mean ``loc [K, P]``, in float64."""

    @abstractmethod
    def solve(self, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        """``P^-1 v`` for ``v [K, P]``, without a graph."""


class Curvature(Declaration):
    """Approximation of ``sum_n L_n (x) h_n h_n' + (prior precision)`` ``[K P, K P]``, the precision at the mode.

    ``L_n [K, K]`` is the information of row n (:mod:`bll_pyro.gaussian.information`) and h_n its row of the design matrix. With
    outputs linear in the weights this Gauss-Newton matrix is the Hessian wherever L_n is that of the likelihood.
    A member defines which sums over the rows it keeps, how these and the prior make a precision, and, for gradients, the
    inner product of the sums with given matrices, without building them again.
    """

    family: ClassVar[str] = "curvatures"

    @property
    def can_rotate(self) -> bool:
        """Whether its axes may be rotated to the principal axes of the features."""
        return False

    @abstractmethod
    def zeros(self, num_outputs: int, num_columns: int, independent: bool, like: Tensor) -> Sums:
        """The sums over no rows, in float64; ``independent``: the information of every row is diagonal."""

    @abstractmethod
    def add(self, sums: Sums, design: Float[Tensor, "B P"], information: Information) -> None:
        """Add rows ``design [B, P]`` to the sums, in place."""

    def finished(self, sums: Sums) -> Sums:
        """The sums of all rows, with what is worked out from them once for precisions with many priors."""
        return sums

    @abstractmethod
    def precision(self, sums: Sums, prior: Float[Tensor, "K P ..."]) -> Precision:
        """Add the prior's precision: ``[K, P]``, ``[K, P, P]`` or ``[K, P, K, P]``; differentiable in both."""

    @abstractmethod
    def times(self, sums: Sums, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        """What the rows add to the precision, times ``vectors [K, P]``."""

    @abstractmethod
    def contract(
        self, slopes: Sums, design: Float[Tensor, "B P"], information: Information
    ) -> Float[Tensor, ""]:
        """Inner product of ``slopes`` with what these rows add to the sums; differentiable in the information."""

    def takes(self, num_axes: int) -> bool:
        """Whether a prior's precision with this number of axes can be added."""
        return True

    def num_numbers(self, num_outputs: int, num_columns: int, independent: bool) -> int:
        """Numbers that the precision takes, for the check against memory."""
        return num_outputs * num_columns

    def check_memory(self, num_outputs: int, num_columns: int, independent: bool) -> None:
        """Raise if the precision and its copies in float64 would not fit."""
        num_bytes = COPIES_BYTES * self.num_numbers(num_outputs, num_columns, independent)
        if num_bytes > MAX_BYTES:
            fitting = curvatures_that_fit(num_outputs, num_columns, independent)
            remedy = f"use {' or '.join(fitting)}" if fitting else "use fewer features or outputs"
            raise ValueError(
                f"{type(self).__name__}: expected a precision that fits in {MAX_BYTES / 2**30:.0f} GiB, got {num_outputs} "
                f"outputs x {num_columns} columns, which take {num_bytes / 2**30:.1f} GiB; {remedy}"
            )


def curvatures_that_fit(num_outputs: int, num_columns: int, independent: bool) -> list[str]:
    """The library's curvatures whose precision fits in memory, the richest first."""
    own = [cls() for cls in Curvature.__subclasses__() if cls.__module__.startswith(__package__)]
    sizes = {
        f"bll.curvatures.{type(c).__name__}()": c.num_numbers(num_outputs, num_columns, independent)
        for c in own
    }
    fitting = {name: size for name, size in sizes.items() if COPIES_BYTES * size <= MAX_BYTES}
    return sorted(fitting, key=lambda name: -fitting[name])
