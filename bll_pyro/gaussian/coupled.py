"""Gaussian outputs that are correlated with the noise of the likelihood, such as the cutpoints of ordered classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.outputs import OutputGaussian, Outputs
from bll_pyro.gaussian.points import normal_points


@dataclass(frozen=True)
class OutputCoupled(Outputs):
    """``f_n = g_n + shift_n e`` with Gaussian ``g_n`` and the standard normals ``e [U]`` of which the noise is a function.

    Draws of the outputs belong to the draws of the noise at the same points: draw s of both is one draw of their joint
    Gaussian.

    Parameters
    ----------
    given
        Outputs at ``e = 0``.
    shift
        ``[N, K, U]``.
    """

    given: OutputGaussian
    shift: Float[Tensor, "N K U"]

    @property
    def mean(self) -> Float[Tensor, "N K"]:
        """Mean ``[N, K]``."""
        return self.given.mean

    @property
    def variance(self) -> Float[Tensor, "N K"]:
        """Marginal variance ``[N, K]``."""
        return self.given.variance + self.shift.square().sum(-1)

    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """Quasi-random draws ``[S, N, K]``, in the order of the draws of the noise."""
        points = noise_points(num_points, self.shift.shape[-1], self.num_outputs, seed).to(self.shift)
        return self.moved(self.given.draws(num_points, seed), points)

    def moved(self, draws: Float[Tensor, "S N K"], points: Float[Tensor, "S U"]) -> Float[Tensor, "S N K"]:
        """Draws of ``g [S, N, K]`` moved along with the noise at ``points [S, U]``."""
        return draws + torch.einsum("nku,su->snk", self.shift, points)

    def rows(self, index: slice) -> OutputCoupled:
        """Restrict to some rows."""
        return OutputCoupled(self.given.rows(index), self.shift[index])

    @classmethod
    def concat(cls, parts: list[Any]) -> OutputCoupled:
        """Join the rows of several outputs of one posterior."""
        given = OutputGaussian.concat([part.given for part in parts])
        return cls(given, torch.cat([part.shift for part in parts]))


def noise_points(num_points: int, num_noise: int, num_outputs: int, seed: int = 0) -> Float[Tensor, "S U"]:
    """Standard normals ``[S, U]`` of the noise, in other dimensions than those of the outputs."""
    skip = 2 * num_outputs  # outputs take up to K independent normals and K common ones
    return normal_points(num_points, num_noise, seed, skip)
