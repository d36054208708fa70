"""Distributions of the outputs f = W h + b of given rows: Gaussian in closed form, or by draws.

A Gaussian over weights is a Gaussian over outputs, so training and prediction need no weights at all, and nothing of
size draws x outputs x features is ever built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.points import normal_points
from bll_pyro.ranks import row_normals
from bll_pyro.summary import Summary


class Outputs(Summary, ABC):
    """The distribution of the outputs ``[N, K]`` of N rows."""

    @property
    @abstractmethod
    def mean(self) -> Float[Tensor, "N K"]:
        """Mean ``[N, K]``."""

    @property
    @abstractmethod
    def variance(self) -> Float[Tensor, "N K"]:
        """Marginal variance ``[N, K]``."""

    @abstractmethod
    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """Equally weighted draws ``[S, N, K]``: quasi-random for a Gaussian, the draws themselves otherwise."""

    def draws_by_output(self, num_points: int, seed: int = 0) -> Float[Tensor, "K S N"]:
        """The same draws as ``[K, S, N]``, in memory of their own that may be overwritten."""
        return self.draws(num_points, seed).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)

    def independent(
        self, num_points: int, seed: int = 0
    ) -> tuple[Float[Tensor, "K N"], Float[Tensor, "K N"], Float[Tensor, "K S"]] | None:
        """Parts ``loc [K, N], scale [K, N], points [K, S]`` of draws ``loc + scale * points``; None without such a form."""
        return None

    @abstractmethod
    def rows(self, index: slice) -> Outputs:
        """Restrict to some rows."""

    def shifted(self, shift: Float[Tensor, "N K"]) -> Outputs:
        """The outputs plus numbers ``[N, K]``."""
        raise NotImplementedError(f"{type(self).__name__} cannot be shifted")

    @classmethod
    @abstractmethod
    def concat(cls, parts: list[Any]) -> Outputs:
        """Join the rows of several outputs of one posterior."""

    def double(self) -> Self:
        """The same distribution in float64."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}  # type: ignore[arg-type]
        wide = {name: value.double() for name, value in parts.items() if value is not None}
        return replace(self, **wide)  # type: ignore[type-var]

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return int(self.mean.shape[0])

    @property
    def num_outputs(self) -> int:
        """Number of outputs K."""
        return int(self.mean.shape[1])


@dataclass(frozen=True)
class OutputGaussian(Outputs):
    """``f_n = loc_n + mixing (scale_n * e) + factor_n e'`` with standard normal ``e [K]`` and ``e' [R]``.

    ========== ========================== =======================================================
    parts      covariance of row n        made by
    ========== ========================== =======================================================
    scale      ``diag(scale_n^2)``        diagonal weights (``scale`` may be ``[N, 1]``)
    mixing     ``C diag(scale_n^2) C'``   matrix-normal and Kronecker weights; C ``[K, K]`` is shared
    factor     ``+ F_n F_n'``             low-rank and full covariances; F ``[N, K, R]``
    ========== ========================== =======================================================
    """

    loc: Float[Tensor, "N K"]
    scale: Float[Tensor, "N #K"] | None = None
    mixing: Float[Tensor, "K K"] | None = None
    factor: Float[Tensor, "N K R"] | None = None

    @property
    def mean(self) -> Float[Tensor, "N K"]:
        """Mean ``[N, K]``."""
        return self.loc

    @property
    def variance(self) -> Float[Tensor, "N K"]:
        """Marginal variance ``[N, K]``."""
        total = None if self.factor is None else self.factor.square().sum(-1)
        if self.scale is not None:
            square = self.scale.square()
            if square.shape[1] < self.loc.shape[1]:
                square = square.expand_as(self.loc)
            square = square if self.mixing is None else square @ self.mixing.square().mT
            total = square if total is None else total + square
        return torch.zeros_like(self.loc) if total is None else total

    @property
    def covariance(self) -> Float[Tensor, "N K K"]:
        """Covariance ``[N, K, K]`` of each row. Built on demand: K^2 numbers a row."""
        num_rows, num_outputs = self.loc.shape
        total = self.loc.new_zeros(num_rows, num_outputs, num_outputs)
        if self.scale is not None:
            square = self.scale.square().expand_as(self.loc)
            if self.mixing is None:
                total = total + torch.diag_embed(square)
            else:
                total = total + (self.mixing * square[:, None, :]) @ self.mixing.mT
        if self.factor is not None:
            total = total + self.factor @ self.factor.mT
        return total

    @property
    def tied(self) -> bool:
        """Whether the outputs of a row depend on each other."""
        return self.num_outputs > 1 and (self.mixing is not None or self.factor is not None)

    @property
    def noise_dim(self) -> int:
        """Number of standard normals that one draw of a row takes."""
        independent = self.loc.shape[-1] if self.scale is not None else 0
        return independent + (self.factor.shape[-1] if self.factor is not None else 0)

    def at(self, noise: Float[Tensor, "*S #N R"]) -> Float[Tensor, "*S N K"]:
        """Return the outputs at given standard normals ``[..., N or 1, noise_dim]``: ``[..., N, K]``."""
        if self.scale is None and self.factor is None:
            return self.loc.expand(*noise.shape[:-2], *self.loc.shape)
        outputs = self.loc
        if self.scale is not None:
            num_outputs = self.loc.shape[-1]
            independent = self.scale * noise[..., :num_outputs]
            outputs = outputs + (independent if self.mixing is None else independent @ self.mixing.mT)
            noise = noise[..., num_outputs:]
        if self.factor is not None:
            outputs = outputs + torch.einsum(
                "nkr,...nr->...nk", self.factor, noise.expand(*noise.shape[:-2], self.loc.shape[0], -1)
            )
        return outputs

    def rsample(self, generator: torch.Generator | None = None) -> Float[Tensor, "N K"]:
        """Draw the outputs of all rows once, ``[N, K]``, with independent noise for each row; differentiable."""
        return self.at(row_normals(self.loc.shape[0], self.noise_dim, self.loc, generator))

    def mirrored(self, generator: torch.Generator | None = None) -> Float[Tensor, "_ K"]:
        """Draw the outputs of all rows once, then their mirror images at the mean: ``[2 N, K]``; a point ``[N, K]``.

        Odd functions of the noise cancel in the average of the two, so that of a smooth function has less variance.
        """
        if self.scale is None and self.factor is None:
            return self.loc
        outputs = self.rsample(generator)
        return torch.cat([outputs, 2 * self.loc - outputs])

    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """Return quasi-random draws ``[S, N, K]``; the same points serve every row."""
        if self.noise_dim == 0:
            return self.loc[None]
        compact = self.compact()
        points = normal_points(num_points, compact.noise_dim, seed).to(self.loc)
        return compact.at(points[:, None, :])

    def draws_by_output(self, num_points: int, seed: int = 0) -> Float[Tensor, "K S N"]:
        """Independent outputs are written in this order directly."""
        parts = self.independent(num_points, seed)
        if parts is None:
            return super().draws_by_output(num_points, seed)
        loc, scale, points = parts
        return torch.addcmul(loc[:, None], scale[:, None], points[..., None])

    def independent(
        self, num_points: int, seed: int = 0
    ) -> tuple[Float[Tensor, "K N"], Float[Tensor, "K N"], Float[Tensor, "K S"]] | None:
        """Outputs of diagonal weights have this form."""
        if self.scale is None or self.mixing is not None or self.factor is not None:
            return None
        points = normal_points(num_points, self.noise_dim, seed).to(self.loc).mT
        return self.loc.mT.contiguous(), self.scale.expand_as(self.loc).mT.contiguous(), points

    def compact(self) -> OutputGaussian:
        """Replace a factor wider than K by a Cholesky factor: K normals a row are enough.

        A narrower factor stays, so that no row of a low-rank posterior ever has K x K numbers.
        """
        if self.factor is None or self.factor.shape[-1] <= self.loc.shape[-1]:
            return self
        covariance = self.covariance
        # a relative jitter at the rounding level keeps numerically singular covariances factorable
        trace = covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        jitter = 10 * torch.finfo(covariance.dtype).eps * trace + torch.finfo(covariance.dtype).tiny
        tril = cholesky(
            covariance + torch.diag_embed(jitter.expand_as(self.loc)), "covariance of the outputs"
        )
        return OutputGaussian(self.loc, factor=tril)

    def rows(self, index: slice) -> OutputGaussian:
        """Restrict to some rows."""
        return replace(
            self,
            loc=self.loc[index],
            scale=None if self.scale is None else self.scale[index],
            factor=None if self.factor is None else self.factor[index],
        )

    def shifted(self, shift: Float[Tensor, "N K"]) -> OutputGaussian:
        """The outputs plus numbers ``[N, K]``."""
        return replace(self, loc=self.loc + shift)

    @classmethod
    def concat(cls, parts: list[OutputGaussian]) -> OutputGaussian:
        """Join the rows of several outputs of one posterior."""

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return cls(join("loc"), join("scale"), parts[0].mixing, join("factor"))


@dataclass(frozen=True)
class OutputDraws(Outputs):
    """Outputs given by equally weighted draws ``values [S, N, K]`` (NUTS, flows, any custom guide)."""

    values: Float[Tensor, "S N K"]

    @property
    def mean(self) -> Float[Tensor, "N K"]:
        """Mean ``[N, K]``."""
        return self.values.mean(0)

    @property
    def variance(self) -> Float[Tensor, "N K"]:
        """Marginal variance ``[N, K]``."""
        return self.values.var(0, correction=0)

    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """Return all draws ``[S, N, K]``; ``num_points`` and ``seed`` have no effect."""
        return self.values

    def rows(self, index: slice) -> OutputDraws:
        """Restrict to some rows."""
        return OutputDraws(self.values[:, index])

    def shifted(self, shift: Float[Tensor, "N K"]) -> OutputDraws:
        """The outputs plus numbers ``[N, K]``."""
        return OutputDraws(self.values + shift)

    @classmethod
    def concat(cls, parts: list[OutputDraws]) -> OutputDraws:
        """Join the rows of several outputs of one posterior."""
        return cls(torch.cat([part.values for part in parts], 1))
