"""The linear Gaussian model in the eigenvectors of ``H'H``: evidence and posterior in closed form, O(D) a target.

With the noise ``s`` and the prior scale ``t`` of a target given, ``w ~ N(w0, t^2 I)``, ``b ~ N(0, sb^2)`` and
``y = H w + b + s e``. The features' centre ``m`` is taken out first: then the data say the same of ``w`` and of
``beta = b + m'w`` as if these were independent, and only the prior of b ties them, by one direction.

================================================= =====================================================
on paper (targets about ``H w0``; ``r = s^2 / t^2``)  in code
================================================= =====================================================
``Hc'Hc = Q diag(lam) Q'``                        ``eigenvalues``, rotation Q of the frame
``g = Q' Hc' yc``                                 ``cross``
``w^ = g / (lam + r)``                            mean of w from the centred rows
``yc'yc - g'w^``                                    ``residual`` and what shrinkage adds to it
``ybar ~ N(m'w^, sb^2 + s^2 (m'(..)^-1 m + 1/N))``  ``gap``, ``spread``: what the rows' mean adds
================================================= =====================================================

``-2 log p(y) = N log 2 pi + (N - 1) log s^2 + sum log(1 + lam / r) + residual / s^2 + log(N spread) + gap^2 / spread``

Without a bias the features are not centred, N stands for N - 1, and the last terms are gone. Derived from Bishop
(2006), section 3.5, with the bias integrated out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bll_pyro.gaussian import CentredDiagonal, Diagonal
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.exact.statistics import SufficientStatistics

CHUNK_NUMBERS = 4_000_000


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """N rows, D features and T targets, as far as the posterior needs them; float64, on the CPU.

    Parameters
    ----------
    num_rows
        N: the sum of the weights, where rows have weights.
    eigenvalues
        Of ``Hc'Hc`` (of ``H'H`` without a bias), ``[D]``.
    cross
        ``[T, D]``, about the prior's centre.
    square, residual
        Sum of squares of each target about the prior's centre, ``[T]``, centred where there is a bias; and what least
        squares leave of it.
    target_mean
        ``[T]``, about the prior's centre.
    loc
        The prior's centre in the eigenvectors, ``[T, D]``.
    feature_mean
        m in the eigenvectors, ``[D]``; None without a bias.
    bias_scale
        Prior scale of the bias.
    relative
        Whether the prior scales of weights and bias are multiplied by the noise (the conjugate prior).
    """

    num_rows: float
    eigenvalues: Tensor
    cross: Tensor
    square: Tensor
    residual: Tensor
    target_mean: Tensor
    loc: Tensor
    feature_mean: Tensor | None = None
    bias_scale: float = 1.0
    relative: bool = False

    @classmethod
    def of(
        cls, sums: SufficientStatistics, loc: Tensor, bias_scale: float | None, relative: bool = False
    ) -> tuple[LinearGaussian, Tensor]:
        """The model of some rows with the prior centred at ``loc [T, D]``, and the rotation Q ``[D, D]``.

        ``bias_scale`` is None where there is no bias.
        """
        num_rows, loc = sums.weight, loc.to(sums.gram)
        mean = sums.target_mean - loc @ sums.feature_mean
        cross = sums.cross.mT - loc @ sums.gram
        square = sums.square - ((sums.cross.mT + cross) * loc).sum(-1)
        gram, total = sums.gram, square + num_rows * mean.square()
        if bias_scale is None:
            gram = gram + num_rows * torch.outer(sums.feature_mean, sums.feature_mean)
            cross = cross + num_rows * torch.outer(mean, sums.feature_mean)
            square = total
        values, rotation = torch.linalg.eigh(gram)
        cross = cross @ rotation
        seen = values > torch.finfo(values.dtype).eps * len(values) * values[-1]
        # n rows span n directions and no more; what the others show is rounding
        num_free = sums.num_rows - (bias_scale is not None)
        seen &= torch.arange(len(values), device=seen.device) >= len(values) - num_free
        cross = torch.where(seen, cross, 0.0)
        explained = (cross.square() / torch.where(seen, values, 1.0)).sum(-1)
        # nothing is known below the rounding of the sums; and as many directions as rows leave nothing over
        raw = sums.square + num_rows * sums.target_mean.square()
        floor = torch.finfo(square.dtype).eps * torch.where(raw > 0, raw, num_rows)
        interpolated = (square > floor) & (seen.sum() >= num_free)
        residual = torch.where(interpolated, 0.0, torch.maximum(square - explained, floor))
        model = cls(
            num_rows,
            torch.where(seen, values, 0.0).cpu(),
            cross.cpu(),
            square.cpu(),
            residual.cpu(),
            mean.cpu(),
            (loc @ rotation).cpu(),
            None if bias_scale is None else (sums.feature_mean @ rotation).cpu(),
            1.0 if bias_scale is None else float(bias_scale),
            relative,
        )
        return model, rotation.contiguous()

    @property
    def num_targets(self) -> int:
        """T."""
        return len(self.square)

    @property
    def target_scale(self) -> Tensor:
        """Rough scale of each target ``[T]``, never 0: where searches for the noise start."""
        scale = (self.square.clamp_min(0) / self.num_rows).sqrt()
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    @property
    def feature_scale(self) -> float:
        """Root mean square of the rows' length, never 0: outputs of unit weights have this scale."""
        mean = float(self.eigenvalues.sum()) / self.num_rows
        return math.sqrt(mean) if mean > 0 else 1.0

    def log_evidence(self, noise: Tensor, prior_scale: Tensor) -> Tensor:
        """``log p(y_t | noise, prior scale)`` of each target, nats; noise ``[..., T]``, prior scale ``[T]``."""
        rows = max(1, CHUNK_NUMBERS // self.cross.numel())
        if noise.dim() == 1:
            return self.log_evidence(noise[None], prior_scale)[0]
        if len(noise) > rows:
            return torch.cat([self.log_evidence(part, prior_scale) for part in noise.split(rows)])
        square, prior_square, bias_square = self._variances(noise, prior_scale)
        ratio = square / prior_square
        signal = self.eigenvalues / ratio.mT[..., None]  # [T, M, D]
        shrinkage = (1 + signal).reciprocal()  # r / (lam + r)
        # least squares and what shrinkage adds; y'y - g'w^ would be lost in rounding where the fit is close
        explained, moment = self._sums[..., :1], self._sums[..., 1:2]
        residual = self.residual + (shrinkage @ explained).squeeze(-1).mT
        log_det = signal.log1p().sum(-1).mT
        total = self.num_rows * LOG_TWO_PI + log_det + residual / square
        if self.feature_mean is None:
            return -0.5 * (total + self.num_rows * square.log())
        gap = self.target_mean - ((signal * shrinkage) @ moment).squeeze(-1).mT
        certainty = (shrinkage @ self.feature_mean.square()).mT / ratio + 1 / self.num_rows
        spread = bias_square + square * certainty
        mean_part = (self.num_rows * spread).log() + gap.square() / spread
        return -0.5 * (total + (self.num_rows - 1) * square.log() + mean_part)

    @cached_property
    def _sums(self) -> Tensor:
        """What least squares explain in each direction, and its share in ``m'w``, ``[T, D, 2]``; 0 in empty directions."""
        weights = torch.where(self.eigenvalues > 0, self.cross / self.eigenvalues, 0.0)
        mean = torch.zeros_like(self.eigenvalues) if self.feature_mean is None else self.feature_mean
        return torch.stack([self.cross * weights, mean * weights], -1)

    def given(self, noise: Tensor, prior_scale: Tensor) -> CentredDiagonal | Diagonal:
        """Posterior of the weights in the eigenvectors, for S values of the noise ``[S, T]``: S T outputs in a row."""
        square, prior_square, bias_square = self._variances(noise, prior_scale)
        precision = (self.eigenvalues / square[..., None] + 1 / prior_square[..., None]).flatten(0, 1)
        moved = (self.cross / square[..., None]).flatten(0, 1) / precision
        loc = self.loc.repeat(len(noise), 1) + moved
        scale = precision.rsqrt()
        if self.feature_mean is None:
            return Diagonal(loc, scale)
        beta_scale = (square / self.num_rows).sqrt().flatten()
        scale = torch.cat([scale, beta_scale[:, None]], -1)
        prior_direction = torch.cat([-self.feature_mean, self.feature_mean.new_ones(1)])
        direction = scale * prior_direction / bias_square.expand_as(square).sqrt().flatten()[:, None]
        mean = self.target_mean.repeat(len(noise))
        gap = mean - moved @ self.feature_mean
        pulled = gap / bias_square.expand_as(square).sqrt().flatten() / (1 + direction.square().sum(-1))
        step = -scale * direction * pulled[:, None]
        beta = mean + step[:, -1]
        weights = moved + step[:, :-1]
        bias = beta - weights @ self.feature_mean
        loc = torch.cat([self.loc.repeat(len(noise), 1) + weights, bias[:, None]], -1)
        return CentredDiagonal(loc, scale, direction, self.feature_mean)

    def _variances(self, noise: Tensor, prior_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        square = noise.square()
        factor = square if self.relative else torch.ones_like(square)
        return square, prior_scale.square() * factor, self.bias_scale**2 * factor
