r"""Sums over eigenvalues as functions of the log of the ratio r of noise and prior variance, as piecewise Chebyshev polynomials.

With an isotropic prior the evidence depends on the eigenvalues ``lam`` only through, for each target,

====================================== =======================================
on paper                               in code
====================================== =======================================
``sum log(1 + lam / r)``               ``log_det``
``sum explained r / (lam + r)``        ``explained``: squares that shrinkage adds to the residual
``sum moment lam / (lam + r)``         ``moment``: the mean output of the weights
``sum m^2 r / (lam + r)``              ``mean_square``
====================================== =======================================

Each is analytic in ``x = log r`` with its singularities at imaginary parts of pi and more. On a piece of half-width 2 the error of
the polynomial through n Chebyshev points falls like ``3.43^-n`` (Trefethen 2013, theorem 8.2), and is rounding at 32. So each of
many values of r costs 32 products a sum, however many eigenvalues there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

NUM_POINTS, HALF_WIDTH = 32, 2.0
CHUNK_NUMBERS = 4_000_000  # numbers in one block
_Z = np.cos(np.pi * (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS)
POINTS = torch.from_numpy(_Z)
# values at the points to coefficients, and these to those of the derivative
COEFFICIENTS = torch.from_numpy(np.linalg.inv(chebyshev.chebvander(_Z, NUM_POINTS - 1)))
SLOPES = torch.from_numpy(np.pad(chebyshev.chebder(np.eye(NUM_POINTS)), ((0, 1), (0, 0))) / HALF_WIDTH)


@dataclass(eq=False)
class SpectralSums:
    """The four sums; pieces are made where they are asked for.

    Parameters
    ----------
    eigenvalues
        ``lam [R]``, above 0.
    explained, moment
        ``[T, R]``.
    mean_square
        ``m^2 [R]``.
    """

    eigenvalues: Tensor
    explained: Tensor
    moment: Tensor
    mean_square: Tensor
    first: int = 0  # number of the first piece; piece p is centred at p times its width
    pieces: Tensor | None = None  # coefficients [P, T, n, 4]

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """The sums ``[..., T, 4]`` at ``x [..., T]``, differentiable."""
        flat = log_ratio.reshape(-1, len(self.explained))
        self._cover(
            *(round(float(x) / (2 * HALF_WIDTH)) for x in flat.detach().nan_to_num(0.0, 0.0, 0.0).aminmax())
        )
        size = max(1, CHUNK_NUMBERS // (flat.shape[1] * NUM_POINTS * 4))
        parts = [_Interpolated.apply(part, self.pieces, self.first) for part in flat.split(size)]
        return torch.cat(parts).view(*log_ratio.shape, 4)

    @torch.no_grad()
    def _cover(self, first: int, last: int) -> None:
        """Have pieces from ``first`` to ``last``."""
        if self.pieces is not None:
            if self.first <= first and last < self.first + len(self.pieces):
                return
            first, last = min(first, self.first), max(last, self.first + len(self.pieces) - 1)
        centers = torch.arange(first, last + 1, dtype=torch.float64)[:, None] * 2 * HALF_WIDTH
        x = (centers + HALF_WIDTH * POINTS).reshape(-1)
        size = max(1, CHUNK_NUMBERS // max(1, len(self.eigenvalues)))
        values = torch.cat([self._direct(part) for part in x.split(size)])
        values = values.view(len(centers), NUM_POINTS, -1)
        pieces = (COEFFICIENTS @ values).view(len(centers), NUM_POINTS, -1, 4)
        self.first, self.pieces = first, pieces.transpose(1, 2).contiguous()

    def _direct(self, x: Tensor) -> Tensor:
        """The sums ``[M, T, 4]`` at ``x [M]``, each over all eigenvalues."""
        signal = self.eigenvalues / x.exp()[:, None]
        shrinkage = (1 + signal).reciprocal()  # r / (lam + r)
        of_targets = shrinkage @ self.explained.mT, (signal * shrinkage) @ self.moment.mT
        shared = signal.log1p().sum(1), shrinkage @ self.mean_square
        log_det, square = (value[:, None].expand_as(of_targets[0]) for value in shared)
        return torch.stack([log_det, *of_targets, square], -1)


class _Interpolated(torch.autograd.Function):
    """Values of the polynomials of each target at ``x [M, T]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pieces: Tensor, first: int) -> Tensor:
        """``[M, T, 4]``."""
        place = x / (2 * HALF_WIDTH)
        number = place.round()
        angle = (2 * (place - number)).clamp(-1, 1).acos()
        basis = (angle[..., None] * torch.arange(NUM_POINTS, dtype=x.dtype)).cos()
        index = (number - first).nan_to_num(0.0, 0.0, 0.0).long()
        chosen = pieces[index, torch.arange(x.shape[1])]  # [M, T, n, 4]
        if x.requires_grad:
            ctx.save_for_backward(((basis @ SLOPES)[..., None, :] @ chosen)[..., 0, :])
        return (basis[..., None, :] @ chosen)[..., 0, :]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in x."""
        (derivative,) = ctx.saved_tensors
        return (slopes[0] * derivative).sum(-1), None, None
