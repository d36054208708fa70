"""Exact posterior under a joint Gaussian prior of weight and bias: the posterior of earlier rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.gaussian import BlockDiagonal, Dense, WeightGaussian
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.precision import inverse_root, precision
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.exact.statistics import SufficientStatistics


def condition(
    prior: WeightGaussian, sums: SufficientStatistics, noise: Tensor, bias: bool
) -> tuple[BlockDiagonal | Dense, float]:
    """Posterior of ``[W b]`` ``[K, P]`` under the prior ``N(a0, L0^-1)``, and the log evidence of the rows in nats.

    With the design H (ones for the bias), residuals ``r = y - H a0`` and noise scale s:

    ``L = L0 + H'H / s^2``, ``a = a0 + L^-1 H'r / s^2``,
    ``log p(y) = -1/2 [N log(2 pi s^2) + (r'r - r'H (a - a0)) / s^2 + log |L| - log |L0|]``.
    """
    matrix, loc = precision(prior).cpu(), prior.loc.double().cpu()
    sums = sums.to("cpu")
    num_outputs, num_columns = loc.shape
    square = noise.double().cpu().expand(num_outputs).square()
    gram, cross, square_sum = _about(sums, loc, bias)
    added = gram / square[:, None, None]
    right = cross / square[:, None]
    if matrix.dim() < 4:
        blocks = torch.diag_embed(matrix) if matrix.dim() == 2 else matrix
        total = blocks + added
        upper = inverse_root(cholesky(total, "precision of the weights"))
        step = (upper @ (upper.mT @ right[..., None])).squeeze(-1)
        log_dets = torch.linalg.slogdet(blocks).logabsdet + 2 * _log_diagonal(upper)
        # contiguous, as a file stores it, so that a loaded posterior predicts the same bits
        tril = cholesky(upper @ upper.mT, "covariance of the weights").contiguous()
        weights: BlockDiagonal | Dense = BlockDiagonal(loc + step, tril)
    else:
        size = num_outputs * num_columns
        before = matrix.reshape(size, size)
        total = before + torch.block_diag(*added)
        upper = inverse_root(cholesky(total, "precision of the weights"))
        step = (upper @ (upper.mT @ right.flatten())).view_as(loc)
        log_dets = torch.linalg.slogdet(before).logabsdet + 2 * _log_diagonal(upper)
        weights = Dense(loc + step, upper.view(*loc.shape, size), _log_diagonal(upper))
    misfit = (square_sum - (cross * step).sum(-1)) / square
    rows = sums.weight * (square.log() + LOG_TWO_PI) + misfit
    return weights, float(-0.5 * (rows.sum() - log_dets.sum()))


def _about(sums: SufficientStatistics, loc: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``H'H [P, P]``, ``H'r [K, P]`` and ``r'r [K]`` of the residuals ``r = y - H loc'``."""
    weight = loc[:, : len(sums.feature_mean)]
    mean, num_rows = sums.target_mean - weight @ sums.feature_mean, sums.weight
    if bias:
        mean = mean - loc[:, -1]
    centred = sums.cross.mT - weight @ sums.gram
    square = sums.square - ((sums.cross.mT + centred) * weight).sum(-1) + num_rows * mean.square()
    gram = sums.gram + num_rows * torch.outer(sums.feature_mean, sums.feature_mean)
    cross = centred + num_rows * torch.outer(mean, sums.feature_mean)
    if not bias:
        return gram, cross, square
    column = num_rows * sums.feature_mean[:, None]
    corner = column.new_full((1, 1), num_rows)
    gram = torch.cat([torch.cat([gram, column], 1), torch.cat([column.mT, corner], 1)])
    return gram, torch.cat([cross, num_rows * mean[:, None]], -1), square


def _log_diagonal(root: Tensor) -> Tensor:
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
