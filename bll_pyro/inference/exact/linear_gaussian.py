"""The linear Gaussian model in the eigenvectors of ``H'H``: evidence and posterior in closed form, O(D) per target.

Given the noise scale ``s`` and the prior scale ``t`` of a target, ``w ~ N(w0, t^2 I)``, ``b ~ N(0, sb^2)`` and
``y = H w + b + s e``. The features' mean ``m`` is subtracted first. The likelihood then factorizes into one factor in
``w`` and one in ``beta = b + m'w``, and the prior of b couples the two by a matrix of rank 1.

================================================= =====================================================
on paper (targets about ``H w0``; ``r = s^2 / t^2``)  in code
================================================= =====================================================
``Hc'Hc = Q diag(lam) Q'``                        ``eigenvalues``, rotation Q of the frame
``g = Q' Hc' yc``                                 ``cross``
``w^ = g / (lam + r)``                            mean of w from the centred rows
``yc'yc - g'w^``                                    ``residual``, and the increase of it by shrinkage
``ybar ~ N(m'w^, sb^2 + s^2 (m'(..)^-1 m + 1/N))``  ``gap``, ``spread``: the term of the rows' mean
================================================= =====================================================

``-2 log p(y) = N log 2 pi + (N - 1) log s^2 + sum log(1 + lam / r) + residual / s^2 + log(N spread) + gap^2 / spread``

Without a bias the features are not centred, N replaces N - 1, and the last two terms are absent. Derived from Bishop
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
from bll_pyro.inference.exact.spectral_sums import SpectralSums
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class LinearGaussian(Summary):
    """Sums of N rows with D features and T targets that determine the posterior; float64, on the CPU.

    Parameters
    ----------
    num_rows
        N: the sum of the weights, where rows have weights.
    eigenvalues
        Of ``Hc'Hc`` (of ``H'H`` without a bias), ``[D]``.
    cross
        ``[T, D]``, of the targets minus the outputs of the prior's centre.
    square, residual
        Sum of squares of each target minus the outputs of the prior's centre, ``[T]``, centred where there is a bias;
        and its residual after least squares.
    target_mean
        ``[T]``, of the targets minus the outputs of the prior's centre.
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
        gram, root, total = sums.gram, sums.root, square + num_rows * mean.square()
        if bias_scale is None:
            gram = gram + num_rows * torch.outer(sums.feature_mean, sums.feature_mean)
            root = None if root is None else torch.cat([root, math.sqrt(num_rows) * sums.feature_mean[None]])
            cross = cross + num_rows * torch.outer(mean, sums.feature_mean)
            square = total
        values, rotation = torch.linalg.eigh(gram) if root is None else eigenvectors_of_rows(root)
        cross = cross @ rotation
        nonzero = values > torch.finfo(values.dtype).eps * len(values) * values[-1]
        # the rank is at most the number of rows, so the other eigenvalues are rounding errors
        num_free = sums.num_rows - (bias_scale is not None)
        nonzero &= torch.arange(len(values), device=nonzero.device) >= len(values) - num_free
        cross = torch.where(nonzero, cross, 0.0)
        explained = (cross.square() / torch.where(nonzero, values, 1.0)).sum(-1)
        # a residual below the rounding error of the sums means nothing; with as many directions as rows it is 0
        raw = sums.square + num_rows * sums.target_mean.square()
        floor = torch.finfo(square.dtype).eps * torch.where(raw > 0, raw, num_rows)
        interpolated = (square > floor) & (nonzero.sum() >= num_free)
        residual = torch.where(interpolated, 0.0, torch.maximum(square - explained, floor))
        model = cls(
            num_rows,
            torch.where(nonzero, values, 0.0).cpu(),
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
        """Root mean square of each target ``[T]``, 1 where it is 0: the start of searches for the noise scale."""
        scale = (self.square.clamp_min(0) / self.num_rows).sqrt()
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    @property
    def feature_scale(self) -> float:
        """Root mean square of the rows' lengths, 1 where it is 0: the scale of the outputs of unit weights."""
        mean = float(self.eigenvalues.sum()) / self.num_rows
        return math.sqrt(mean) if mean > 0 else 1.0

    def log_evidence(self, noise: Tensor, prior_scale: Tensor) -> Tensor:
        """``log p(y_t | noise, prior scale)`` of each target, nats; noise and prior scale ``[..., T]``."""
        square, prior_square, bias_square = self._variances(noise, prior_scale)
        ratio = square / prior_square
        log_det, increase, moment, shrunk = self._sums(ratio.log()).unbind(-1)
        # residual of least squares plus its increase by shrinkage: y'y - g'w^ would cancel where the fit is close
        total = self.num_rows * LOG_TWO_PI + log_det + (self.residual + increase) / square
        if self.feature_mean is None:
            return -0.5 * (total + self.num_rows * square.log())
        gap = self.target_mean - moment
        # in directions without shrinkage
        unseen = self.feature_mean.square().sum() - self._sums.mean_square.sum()
        certainty = (shrunk + unseen.clamp_min(0)) / ratio + 1 / self.num_rows
        spread = bias_square + square * certainty
        mean_part = (self.num_rows * spread).log() + gap.square() / spread
        return -0.5 * (total + (self.num_rows - 1) * square.log() + mean_part)

    @cached_property
    def _sums(self) -> SpectralSums:
        """Of the R directions whose eigenvalue is not 0: of the squares that least squares explain, of ``m'w``, and of ``m^2``.

        In all other directions they are 0. With more features than rows most directions are others.
        """
        kept = self.eigenvalues > 0
        eigenvalues, cross = self.eigenvalues[kept], self.cross[:, kept]
        weights = cross / eigenvalues
        mean = torch.zeros_like(eigenvalues) if self.feature_mean is None else self.feature_mean[kept]
        return SpectralSums(eigenvalues, cross * weights, mean * weights, mean.square())

    def given(self, noise: Tensor, prior_scale: Tensor) -> CentredDiagonal | Diagonal:
        """Posterior of the weights in the eigenvectors for S values of the noise ``[S, T]``, as S T outputs."""
        square, prior_square, bias_square = self._variances(noise, prior_scale)
        precision = (self.eigenvalues / square[..., None] + 1 / prior_square[..., None]).flatten(0, 1)
        shift = (self.cross / square[..., None]).flatten(0, 1) / precision
        loc = self.loc.repeat(len(noise), 1) + shift
        scale = precision.rsqrt()
        if self.feature_mean is None:
            return Diagonal(loc, scale)
        beta_scale = (square / self.num_rows).sqrt().flatten()
        scale = torch.cat([scale, beta_scale[:, None]], -1)
        prior_direction = torch.cat([-self.feature_mean, self.feature_mean.new_ones(1)])
        direction = scale * prior_direction / bias_square.expand_as(square).sqrt().flatten()[:, None]
        mean = self.target_mean.repeat(len(noise))
        gap = mean - shift @ self.feature_mean
        bias_pull = gap / bias_square.expand_as(square).sqrt().flatten() / (1 + direction.square().sum(-1))
        step = -scale * direction * bias_pull[:, None]
        beta = mean + step[:, -1]
        weights = shift + step[:, :-1]
        bias = beta - weights @ self.feature_mean
        loc = torch.cat([self.loc.repeat(len(noise), 1) + weights, bias[:, None]], -1)
        return CentredDiagonal(loc, scale, direction, self.feature_mean)

    def _variances(self, noise: Tensor, prior_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        square = noise.square()
        factor = square if self.relative else torch.ones_like(square)
        return square, prior_scale.square() * factor, self.bias_scale**2 * factor


def eigenvectors_of_rows(root: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[D]``, ascending, and eigenvectors ``[D, D]`` of ``H'H`` for few rows H ``[N, D]``, N <= D.

    With ``H' = Q [R; 0]``, Q orthogonal and R ``[N, N]``, they are those of ``RR'``, turned by Q; the others are 0.
    """
    num_rows, num_columns = root.shape
    reflectors, factors = torch.geqrf(root.mT)
    triangle = reflectors[:num_rows].triu()
    values, inner = torch.linalg.eigh(triangle @ triangle.mT)
    turned = torch.zeros(num_columns, num_columns, dtype=root.dtype, device=root.device)
    turned[:num_rows, -num_rows:] = inner
    turned[num_rows:, :-num_rows].fill_diagonal_(1.0)
    return torch.cat([values.new_zeros(num_columns - num_rows), values]), torch.ormqr(
        reflectors, factors, turned
    )
