"""One covariance over everything: Pyro's ``AutoMultivariateNormal``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.infer.autoguide import AutoContinuous, AutoMultivariateNormal
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.guides.base import Begins, GaussianGuide, Guide, Start, skip_initial_values

REFINE = 0.1  # step of weights whose start is already near the best Gaussian, relative to others


class FullRankGuide(GaussianGuide, AutoMultivariateNormal):
    """Pyro's guide, which also gives its Gaussian in closed form.

    The latent vector begins with the global unknowns u, so the Cholesky factor has them first: given their normals,
    the weights are Gaussian with a shifted mean, and output-space training stays exact.

    Free numbers r move mean and factor away from their start m, L: ``m_i + c_i r_i`` and, with a row scaled as a whole,
    ``exp(c_i r_ii) (L_ij + s_i c_i r_ij / sqrt(n))``, with s_i the standard deviation of number i with all others held fixed.
    A step of Adam then changes a row by a share of its scale, however many numbers the row has. ``c_i`` is 1, or 0.1 for
    weights whose start is near the best Gaussian already.
    """

    start_loc: Tensor
    start_tril: Tensor
    step: Tensor
    pace: Tensor

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, init_loc_fn=skip_initial_values)
        self.attach(start)
        pace = torch.ones_like(start.latent_loc)
        if start.tril is not None:
            pace[self.num_globals :] = REFINE
        self.register_buffer("pace", pace)
        self.register_buffer("start_loc", start.latent_loc)
        self.register_buffer("start_tril", start.latent_tril)
        self.register_buffer("step", (pace * start.latent_scale / len(pace) ** 0.5)[:, None])
        self.relative_loc = torch.nn.Parameter(torch.zeros_like(pace))
        self.relative_tril = torch.nn.Parameter(torch.zeros_like(start.latent_tril))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        AutoContinuous._setup_prototype(self, *args, **kwargs)

    @property
    def loc(self) -> Float[Tensor, " L"]:
        """Mean, as Pyro's guide has it."""
        return self.start_loc + self.pace * self.relative_loc

    @property
    def scale(self) -> Float[Tensor, " L"]:
        """Diagonal of the Cholesky factor, as Pyro's guide has it."""
        return self.start_tril.diagonal() * self.growth

    @property
    def scale_tril(self) -> Float[Tensor, "L L"]:
        """The factor over its diagonal, as Pyro's guide has it."""
        return self.tril() / self.scale[:, None]

    @property
    def growth(self) -> Float[Tensor, " L"]:
        """Factor of each row against its start."""
        return (self.pace * self.relative_tril.diagonal()).exp()

    def tril(self) -> Float[Tensor, "L L"]:
        """The Cholesky factor."""
        return self.growth[:, None] * (self.start_tril + self.step * self.relative_tril.tril(-1))

    def move(self, step: Float[Tensor, " L"]) -> None:
        self.relative_loc.add_(step / self.pace)

    def fit_covariance(self, precision: Float[Tensor, "L L"]) -> None:
        """The inverse of the precision."""
        covariance = torch.cholesky_inverse(cholesky(precision, "precision of the weights"))
        tril = cholesky(covariance, "covariance of the weights")
        growth = tril.diagonal() / self.start_tril.diagonal()
        relative = (tril / growth[:, None] - self.start_tril).tril(-1) / self.step
        self.relative_tril.copy_(relative + torch.diag(growth.log() / self.pace))

    def latents(self) -> gaussian.LatentGaussian:
        """The Gaussian at the current parameters."""
        tril = self.tril()
        u_loc, loc = self.matrix(self.loc)
        u_rows, factor = self.matrix(tril)
        num = self.num_globals
        log_det: Tensor = self.scale[num:].log().sum()
        weights = gaussian.Dense(loc, factor[..., num:], log_det)
        return gaussian.LatentGaussian(weights, u_loc, u_rows[:, :num], factor[..., :num] if num else None)


@dataclass(frozen=True, eq=False)
class FullRank(Guide):
    """One covariance over all weights and global unknowns, Pyro's ``AutoMultivariateNormal``: (K P)^2 numbers.

    The family does not change under a rotation of the features; it is trained in their principal axes, where it is
    nearly diagonal.
    """

    begins: ClassVar[Begins] = "dense"

    @property
    def can_rotate(self) -> bool:
        """True: in other axes it is the same family."""
        return True

    def build(self, model: Any, start: Start) -> FullRankGuide:
        """The guide of ``model``."""
        return FullRankGuide(model, start)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """``(K P)^2``."""
        return (num_outputs * num_columns) ** 2
