"""The frame of a fit: from the user's features and targets to the coordinates in which the weights live, and back.

Features are standardised, then (where the guide asks for it) rotated into their principal axes, and get a last column
of ones for the bias. An isotropic prior does not change under the rotation, and the posterior of the weights is nearly
diagonal in principal axes. Real-valued targets are standardised too.

The constants have the floating-point type of the data that they are of, and numbers are centred in the wider type of data
and constants before they are rounded to that of the fit. So dates, counts and other values far from 0 keep their digits.

The letters of shapes, in all docstrings and annotations of the package:

====== ===========================================================================
letter number of
====== ===========================================================================
N, B   rows; rows of a batch
D, P   features; columns of the design matrix, ``P = D + 1`` with a bias, else D
K      outputs of the last layer
C, T   classes; targets of a row (numbers, counts or labels)
S      draws, or points of an integration; ``*S`` are any leading axes
U, L   global unknowns (noise, hyper-parameters); all unknowns, ``L = U + K P``
M, R   components of a mixture; common directions of a covariance, or normals a row
====== ===========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.gaussian.scratch import scratch
from bll_pyro.summary import Summary


def as_floats(values: Tensor) -> Tensor:
    """Numbers as floating-point numbers, integers in a type that holds them: float64 from 32 bits on, else float32."""
    if values.is_floating_point():
        return values
    return values.to(torch.float64 if values.dtype.itemsize > 2 else torch.float32)


@dataclass(frozen=True, eq=False)
class Frame(Summary):
    """Constants of the training set.

    Parameters
    ----------
    center, scale
        ``[D]``: features are ``(h - center) / scale``. Their type is that in which the fit computes. The scale of a feature
        that is left out is infinite.
    target_center, target_scale
        ``[T]``: real-valued targets are ``(y - target_center) / target_scale``, in the type of ``center``. Their own type
        may be wider; then so is that of predictions in the user's units.
    rotation
        ``[D, D]``, orthogonal: principal axes in its columns; None for plain coordinates.
    bias
        Whether a column of ones follows.
    """

    center: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    target_center: Float[Tensor, " T"]
    target_scale: Float[Tensor, " T"]
    rotation: Float[Tensor, "D D"] | None = None
    bias: bool = True

    @classmethod
    def identity(cls, num_features: int, num_targets: int, like: Tensor, bias: bool = True) -> Frame:
        """The frame that changes nothing."""
        zeros, ones = like.new_zeros, like.new_ones
        return cls(zeros(num_features), ones(num_features), zeros(num_targets), ones(num_targets), None, bias)

    @property
    def num_features(self) -> int:
        """Width D of the features."""
        return len(self.center)

    @property
    def feature_scale(self) -> Literal["common", "columns"]:
        """``"common"`` for one scale of all features, ``"columns"`` for a scale of each."""
        return "common" if len(self.scale) > 1 and bool((self.scale == self.scale[0]).all()) else "columns"

    @property
    def log_target_scale(self) -> float:
        """``sum_t log scale_t``: a log density of a row's standardised targets minus this is one in the user's units."""
        return float(self.target_scale.double().log().sum())

    def standardized(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Features on the scale on which weights are reported, ``[N, D]``."""
        centred = (features.to(self.center.device) - self.center).to(self.center)
        return centred / self.scale if centred.requires_grad else centred.div_(self.scale)

    def design(self, features: Float[Tensor, "N D"], reuse_memory: bool = False) -> Float[Tensor, "N P"]:
        """The design matrix ``[N, P]``: standardised, rotated, and with ones for the bias.

        ``reuse_memory`` is for rows that are used at once and without gradients: the next such call overwrites the result.
        """
        if reuse_memory:
            return self._design_in_scratch(features.to(self.center.device))
        values = self.standardized(features)
        if self.rotation is not None:
            values = values @ self.rotation
        if not self.bias:
            return values
        return torch.cat([values, values.new_ones(values.shape[0], 1)], -1)

    def _design_in_scratch(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        design = scratch("design", (len(features), self.num_features + int(self.bias)), self.center)
        values = design[:, : self.num_features]
        standardized = (
            values if self.rotation is None else scratch("standardized", features.shape, self.center)
        )
        torch.sub(features, self.center, out=standardized).div_(self.scale)
        if self.rotation is not None:
            torch.mm(standardized, self.rotation, out=values)
        if self.bias:
            design[:, -1] = 1.0
        return design

    def targets(self, targets: Shaped[Tensor, "N *T"]) -> Shaped[Tensor, "N *T"]:
        """Standardised targets ``[N, T]`` (labels pass through: their frame is the identity)."""
        if not targets.is_floating_point():
            return targets
        centred = targets.to(self.target_center.device) - self.target_center
        return (centred / self.target_scale).to(self.center)

    def split(self, values: Float[Tensor, "*S P"]) -> dict[str, Tensor]:
        """Split weights ``[..., K, P]`` of this frame into ``weight [..., K, D]`` and ``bias [..., K]``, rotated back."""
        weight = values[..., : self.num_features]
        if self.rotation is not None:
            weight = weight @ self.rotation.mT
        return {"weight": weight, "bias": values[..., -1]} if self.bias else {"weight": weight}

    def join(
        self, weight: Float[Tensor, "*S K D"], bias: Float[Tensor, "*S K"] | None
    ) -> Float[Tensor, "*S K P"]:
        """Inverse of :meth:`split`: weights ``[..., K, P]`` of this frame."""
        values = weight if self.rotation is None else weight @ self.rotation
        return values if bias is None else torch.cat([values, bias[..., None]], -1)

    def to(self, device: torch.device | str) -> Frame:
        """Move the constants to a device."""
        if str(device) == str(self.center.device):
            return self
        return Frame(**{k: v.to(device) for k, v in self.tensors.items()}, bias=self.bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The constants by name, as they are saved."""
        names = ("center", "scale", "target_center", "target_scale", "rotation")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
