"""The Normal prior, with a scale that is given or learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import positive_or_none
from bll_pyro.priors.base import IS_DEVIATION, GaussianPrior, Shape, check_loc, expand


@dataclass(frozen=True, eq=False)
class Normal(GaussianPrior):
    """Independent Normal weights: ``weight[k, d] ~ Normal(loc[k, d], scale)``.

    Parameters
    ----------
    scale
        Standard deviation of each weight, on the scale of the standardised features; None (default) learns it from
        the data as the hyper-parameter ``tau`` (empirical Bayes).
    per_output
        A learned scale for each output instead of one for the layer.
    loc
        Centre ``[K, D]`` of the weights, e.g. those of a pretrained head; None is 0.
    """

    scale: float | None = None
    per_output: bool = False
    loc: Tensor | None = None

    def __post_init__(self) -> None:
        positive_or_none(self.scale, "scale", "Normal", IS_DEVIATION)
        check_loc(self.loc, "Normal")
        if self.per_output and self.scale is not None:
            raise ValueError(
                "Normal(per_output=True): expected scale=None (learned), got a number; drop one of the two"
            )

    @property
    def isotropic(self) -> bool:
        """Without a centre: rotation of the features changes nothing."""
        return self.loc is None

    @property
    def can_rotate(self) -> bool:
        """True: a centre is rotated along."""
        return True

    def rotated(self, rotation: Float[Tensor, "D R"]) -> Self:
        """The same prior in other axes."""
        if self.loc is None:
            return self
        loc = self.loc.to(rotation)  # one number for all features is a different one in each axis
        return replace(self, loc=loc.expand(*loc.shape[:-1], len(rotation)) @ rotation)

    def learned_start(self, shape: Shape) -> dict[str, Tensor]:
        """One ``tau``, or one for each output; starts at 1."""
        if self.scale is not None:
            return {}
        return {"tau": torch.ones(shape[0] if self.per_output else ())}

    def distribution(self, shape: Shape, tau: Tensor | None = None, **_: Tensor) -> dist.Normal:
        """Normal with batch shape ``[..., K, D]``."""
        if tau is None:
            scale = torch.as_tensor(self.scale, dtype=torch.get_default_dtype())
        else:
            scale = tau[..., :, None] if self.per_output else tau[..., None, None]
        loc = torch.zeros_like(scale) if self.loc is None else self.loc.to(scale)
        return dist.Normal(expand(loc, shape), expand(scale, shape), validate_args=False)

    def learned_update(
        self, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> dict[str, Tensor]:
        """``tau^2`` is the mean of ``E[(weight - loc)^2]``: the maximum in closed form."""
        if self.scale is not None:
            return {}
        from_centre = loc if self.loc is None else loc - self.loc.to(loc)
        second_moment = from_centre.square() + scale.square()
        mean = second_moment.mean(-1) if self.per_output else second_moment.mean()
        return {"tau": mean.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()}
