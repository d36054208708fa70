"""Expectations of the softmax of Gaussian (or drawn) outputs: the integration kernels of class predictions.

Classes come first in memory, ``[K, S, N]``: sums over a few classes are then sums of long vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.gaussian.points import halves
from bll_pyro.gaussian.scratch import scratch

MAX_LOG_ODDS = 80.0  # exp(80) is still a float32
# Draws are turned into logarithms of base 2: on some processors torch computes exp four times slower than exp2, and both are
# exact to the last digit.
BITS = math.log2(math.e)


def log_mean_softmax(
    draws: Float[Tensor, "K S N"], labels: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """``log E[p_y]`` of each row ``[N]``, for draws of the outputs ``[K, S, N]``, which are overwritten, and labels ``[N]``.

    From the odds against the label, with one exponential for each number.
    """
    own = draws.gather(0, labels.expand(1, draws.shape[1], -1))
    draws -= own
    draws *= BITS / temperature
    odds = draws.clamp_max(MAX_LOG_ODDS * BITS).exp2_().sum(0)
    result = odds.reciprocal_().mean(0).log_()
    far = result < -MAX_LOG_ODDS / 2  # where the largest odds may have been cut
    if bool(far.any()):
        log_probs = -(draws[:, :, far] / BITS).logsumexp(0)
        result[far] = log_probs.logsumexp(0) - math.log(draws.shape[1])
    return result


def softmax_moments(
    draws: Float[Tensor, "K S N"], temperature: float = 1.0
) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Mean ``[N, K]`` of the softmax p, its mean entropy, and the error of the mean, both ``[N]``.

    For draws of the outputs ``[K, S, N]``, which are overwritten. ``H = log Z - sum_k p_k f_k`` for ``f`` less its maximum: one
    exponential and no logarithm for each number.
    """
    draws -= draws.amax(0)
    draws *= BITS / temperature
    probs = draws.exp2()
    normaliser = probs.sum(0)
    probs /= normaliser
    entropy = (normaliser.log() - draws.mul_(probs).sum(0) / BITS).mean(0)
    mean, error = halves(probs.transpose(0, 1))
    return mean.mT.contiguous(), entropy, error.square().mean(0).sqrt()


def independent_softmax_moments(
    loc: Float[Tensor, "K N"],
    scale: Float[Tensor, "K N"],
    points: Float[Tensor, "K S"],
    chunks: Iterable[slice],
) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Mean ``[N, K]`` of the softmax p of ``loc + scale * points``, its mean entropy, and the error of the mean, both ``[N]``.

    For S > 1 points e ``[K, S]`` that all rows share. The mean entropy is
    ``E[log Z] - sum_k (loc_k E[p_k] + scale_k E[p_k e_k])``, and both expectations are products of p with one small matrix: p is
    read once, and no other array of its size is made.

    p lies in memory as two halves of the points ``[2, K, S / 2, N]``. Their means give the error, and two threads work on a half
    each in all operations, so that neither waits for memory that the other has written.

    Exponentials are relative to each row's largest ``loc``, and to the largest of each draw only where these might leave the
    range of the numbers.
    """
    num_outputs, num_points = points.shape
    middle = num_points // 2
    size = num_points - middle
    # of an odd number of points the one in the middle is in both halves, with weight 0 in the first
    e = torch.stack([points[:, :size], points[:, middle:]])
    share = points.new_full((2, 1, size), 1 / num_points)
    share[0, :, middle:] = 0.0
    sums = torch.stack([share.expand_as(e), share * e], 2).view(2 * num_outputs, 2, size)
    ones = points.new_ones(2, 1, num_outputs)
    loc = loc - loc.amax(0)
    far = bool(scale.amax() * points.abs().amax() > MAX_LOG_ODDS / 2)
    loc_bits, scale_bits, e = BITS * loc[:, None], BITS * scale[:, None], e[..., None]
    found = loc.new_empty(2, num_outputs, 2, loc.shape[1])
    log_normaliser = loc.new_empty(loc.shape[1])
    for rows in chunks:
        chunk = loc_bits[..., rows]
        shape = (2, num_outputs, size, chunk.shape[-1])
        values = torch.addcmul(chunk, scale_bits[..., rows], e, out=scratch("draws", shape, loc))
        if far:
            largest = values.amax(1, keepdim=True)
            values -= largest
        probs = values.exp2_()
        normaliser = torch.bmm(ones, probs.view(2, num_outputs, -1)).view(2, 1, *shape[2:])
        probs *= normaliser.reciprocal()
        found[..., rows] = torch.bmm(sums, probs.view(-1, *shape[2:])).view(2, num_outputs, 2, -1)
        normaliser.log_()
        if far:
            normaliser += largest / BITS
        log_normaliser[rows] = share.view(-1) @ normaliser.view(2 * size, -1)
    mean, slope = found.sum(0).unbind(1)
    first, second = found[0, :, 0] * (num_points / middle), found[1, :, 0] * (num_points / size)
    entropy = log_normaliser - (loc * mean + scale * slope).sum(0)
    return mean.mT.contiguous(), entropy, (first - second).square().mean(0).sqrt() / 2
