"""Mean-field: Pyro's ``AutoDiagonalNormal``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal
from pyro.nn import PyroParam
from torch import Tensor
from torch.nn import functional

from bll_pyro import gaussian
from bll_pyro.guides.base import GaussianGuide, Guide, Start, skip_initial_values


class DiagonalGuide(GaussianGuide, AutoDiagonalNormal):
    """Pyro's guide, which also gives its Gaussian in closed form."""

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, init_loc_fn=skip_initial_values)
        self.attach(start)
        self.loc = torch.nn.Parameter(start.latent_loc)
        self.scale = PyroParam(start.latent_scale, self.scale_constraint)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        AutoContinuous._setup_prototype(self, *args, **kwargs)  # the parameters are there already

    def move(self, step: Float[Tensor, " L"]) -> None:
        self.loc.add_(step)

    def fit_covariance(self, precision: Float[Tensor, "L L"]) -> None:
        """The inverse diagonal of the precision."""
        self.take(self.loc, precision.diagonal().rsqrt())

    def marginals(self) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"]]:
        """Means and standard deviations at the current parameters."""
        return self.loc, functional.softplus(self.scale_unconstrained)

    @torch.no_grad()
    def take(self, loc: Float[Tensor, " L"], scale: Float[Tensor, " L"]) -> None:
        """Take means and standard deviations, in place."""
        self.loc.copy_(loc)
        self.scale_unconstrained.copy_(scale + torch.log(-torch.expm1(-scale)))  # softplus of it is the scale

    def latents(self) -> gaussian.LatentGaussian:
        """The Gaussian at the current parameters."""
        (u_loc, loc), (u_scale, scale) = (self.matrix(values) for values in self.marginals())
        return gaussian.LatentGaussian(gaussian.Diagonal(loc, scale), u_loc, u_scale)


@dataclass(frozen=True, eq=False)
class Diagonal(Guide):
    """Independent Normal weights (mean-field), Pyro's ``AutoDiagonalNormal``.

    Parameters
    ----------
    principal_axes
        Take independence in the principal axes of the features instead of the features themselves. An isotropic
        prior does not change under this rotation, and the posterior is nearly diagonal there (for the Gaussian
        likelihood exactly). Priors that are not isotropic keep plain coordinates.
    """

    principal_axes: bool = True

    @property
    def can_rotate(self) -> bool:
        """Whether the axes may be rotated."""
        return self.principal_axes

    def build(self, model: Any, start: Start) -> DiagonalGuide:
        """The guide of ``model``."""
        return DiagonalGuide(model, start)
