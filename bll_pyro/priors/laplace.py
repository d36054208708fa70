"""The Laplace prior: many weights near zero, a few large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import positive_or_none
from bll_pyro.priors.base import IS_DEVIATION, Prior, Shape, centre, check_loc, expand


@dataclass(frozen=True, eq=False)
class Laplace(Prior):
    """Independent Laplace weights: ``weight[k, d] ~ Laplace(loc[k, d], scale / sqrt(2))``.

    Parameters
    ----------
    scale
        Standard deviation of each weight (not the rate's inverse ``b = scale / sqrt(2)``), so that numbers mean the
        same in every prior; None (default) learns it as ``tau``.
    loc
        Centre ``[K, D]`` of the weights, on the scale of the standardised features; None is 0.
    """

    needs_noise: ClassVar[bool] = False
    scale: float | None = None
    loc: Tensor | None = None

    def __post_init__(self) -> None:
        positive_or_none(self.scale, "scale", "Laplace", IS_DEVIATION)
        check_loc(self.loc, "Laplace")

    def learned_start(self, shape: Shape) -> dict[str, Tensor]:
        """One ``tau`` for the layer; starts at 1."""
        return {} if self.scale is not None else {"tau": torch.ones(())}

    def distribution(self, shape: Shape, tau: Tensor | None = None, **_: Tensor) -> dist.Laplace:
        """Laplace with batch shape ``[..., K, D]``."""
        scale = (
            torch.as_tensor(self.scale, dtype=torch.get_default_dtype())
            if tau is None
            else tau[..., None, None]
        )
        loc, width = expand(centre(self.loc, scale), shape), expand(scale / math.sqrt(2), shape)
        return dist.Laplace(loc, width, validate_args=False)

    def _closed_form(
        self, prior: dist.Distribution, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> Float[Tensor, "*S K D"]:
        return -folded_normal_mean(loc - prior.loc, scale) / prior.scale - math.log(2) - prior.scale.log()

    def learned_update(
        self, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> dict[str, Tensor]:
        """``tau / sqrt(2)`` is the mean of ``E|weight|``: the maximum in closed form."""
        if self.scale is not None:
            return {}
        return {"tau": math.sqrt(2) * folded_normal_mean(loc - centre(self.loc, loc), scale).mean()}


def folded_normal_mean(
    loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
) -> Float[Tensor, "*S K D"]:
    """``E|w|`` for ``w ~ Normal(loc, scale)``; ``|loc|`` where the scale is 0."""
    safe = scale.clamp_min(torch.finfo(scale.dtype).tiny)
    ratio = loc / safe
    bump = math.sqrt(2 / math.pi) * scale * torch.exp(-0.5 * ratio.square())
    return bump + loc * torch.special.erf(ratio / math.sqrt(2))
