"""One covariance over everything: Pyro's ``AutoMultivariateNormal``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous, AutoMultivariateNormal
from pyro.nn import PyroParam
from torch import Tensor
from torch.nn import functional

from bll_pyro import gaussian
from bll_pyro.guides.base import GaussianGuide, Guide, Start, skip_initial_values


class FullRankGuide(GaussianGuide, AutoMultivariateNormal):
    """Pyro's guide, which also says its Gaussian in closed form.

    The latent vector begins with the global unknowns u, so the Cholesky factor has them first: given their normals,
    the weights are Gaussian with a shifted mean, and output-space training stays exact.
    """

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, init_loc_fn=skip_initial_values)
        self.attach(start)
        self.loc = torch.nn.Parameter(start.latent_loc)
        self.scale = PyroParam(start.latent_scale, self.scale_constraint)
        unit = torch.eye(len(self.loc), dtype=start.loc.dtype, device=start.loc.device)
        self.scale_tril = PyroParam(unit, self.scale_tril_constraint)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        AutoContinuous._setup_prototype(self, *args, **kwargs)

    def joint(self) -> gaussian.LatentGaussian:
        """The Gaussian at the current parameters."""
        scale = functional.softplus(self.scale_unconstrained)
        strict = self.scale_tril_unconstrained.tril(-1)
        tril = scale[:, None] * (strict + torch.eye(len(scale), dtype=scale.dtype, device=scale.device))
        u_loc, loc = self.matrix(self.loc)
        u_rows, factor = self.matrix(tril)
        num = self.num_globals
        log_det: Tensor = scale[num:].log().sum()
        weights = gaussian.Dense(loc, factor[..., num:], log_det)
        return gaussian.LatentGaussian(weights, u_loc, u_rows[:, :num], factor[..., :num] if num else None)


@dataclass(frozen=True, eq=False)
class FullRank(Guide):
    """One covariance over all weights and global unknowns, Pyro's ``AutoMultivariateNormal``: (K P)^2 numbers.

    The family does not change under a rotation of the features; it is trained in their principal axes, where it is
    nearly diagonal.
    """

    @property
    def rotates(self) -> bool:
        """True: in other axes it is the same family."""
        return True

    def build(self, model: Any, start: Start) -> FullRankGuide:
        """The guide of ``model``."""
        return FullRankGuide(model, start)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """``(K P)^2``."""
        return (num_outputs * num_columns) ** 2
