"""Outputs that are Gaussian given the noise, and a mixture over it: exact posteriors with unknown noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.outputs import Outputs
from bll_pyro.gaussian.points import normal_points


@dataclass(frozen=True, eq=False)
class OutputMixture(Outputs):
    """``f_nk ~ sum_m weight_mk Normal(loc_mnk, scale_mnk)``, where component m of output k has noise ``noise_mk``.

    Outputs are independent of each other, each with a mixture of its own.

    Parameters
    ----------
    weights
        Weights of the M components, which sum to 1 over m, ``[M, K]``.
    loc, scale
        Mean and standard deviation of the outputs given the noise, ``[M, N, K]``.
    noise
        Noise scale of each component, ``[M, K]``.
    """

    weights: Float[Tensor, "M K"]
    loc: Float[Tensor, "M N K"]
    scale: Float[Tensor, "M N K"]
    noise: Float[Tensor, "M K"]

    @property
    def mean(self) -> Float[Tensor, "N K"]:
        """Mean ``[N, K]``."""
        return self.average(self.loc)

    @property
    def variance(self) -> Float[Tensor, "N K"]:
        """Marginal variance ``[N, K]``: mean of the variances and variance of the means."""
        return self.average(self.scale.square() + (self.loc - self.mean).square())

    def average(self, values: Float[Tensor, "M *S N K"]) -> Float[Tensor, "*S N K"]:
        """Mean ``[..., N, K]`` over the components of ``values [M, ..., N, K]``."""
        return torch.einsum("mk,m...k->...k", self.weights, values)

    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """Quasi-random draws ``[S, N, K]``: a component, then a normal; the same points serve every row."""
        num_outputs = self.loc.shape[-1]
        points = normal_points(num_points, 2 * num_outputs, seed).to(self.loc)
        uniform = torch.special.ndtr(points[:, :num_outputs])
        cumulative = self.weights.cumsum(0).mT.contiguous()
        chosen = torch.searchsorted(cumulative, uniform.mT.contiguous()).clamp_max(len(self.weights) - 1).mT
        index = chosen[:, None, :].expand(num_points, self.loc.shape[1], num_outputs)
        return self.loc.gather(0, index) + self.scale.gather(0, index) * points[:, None, num_outputs:]

    def rows(self, index: slice) -> OutputMixture:
        """Restrict to some rows."""
        return replace(self, loc=self.loc[:, index], scale=self.scale[:, index])

    @classmethod
    def concat(cls, parts: list[OutputMixture]) -> OutputMixture:
        """Join the rows of several outputs of one posterior."""
        loc, scale = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("loc", "scale"))
        return replace(parts[0], loc=loc, scale=scale)
