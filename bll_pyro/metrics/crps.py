"""Continuous ranked probability score (CRPS), less sensitive to outliers than the log score; smaller is better.

`CRPS(F, y) = integral (F(x) - [x >= y])^2 dx = E|X - y| - 1/2 E|X - X'|` (Gneiting and Raftery 2007, eq. 20
and 21). Each function returns the score of each target, in its units, for paired comparisons; its mean is usually
reported.
"""

from __future__ import annotations

import numpy as np

from bll_pyro.metrics.arrays import SUM_TOLERANCE, Array, Values, like, real, unit


def crps_sample(draws: Values, targets: Values, *, fair: bool = False) -> Array:
    """CRPS of a predictive distribution from S draws, in O(S log S).

    `1/S sum_s |x_s - y| - 1/c sum_(s<t) |x_s - x_t|`, where the double sum is `sum_i (2i - S - 1) x_(i)` over
    the sorted draws. With `c = S^2` it is exact for the empirical distribution of the draws, and too large by about
    `E|X - X'| / (2 S)` for the distribution that they come from. The fair score, `c = S (S - 1)` (Ferro 2014), is
    unbiased for that distribution, so that results with different S are comparable; single scores can be negative.

    Parameters
    ----------
    draws
        `[S, N]` or `[S, N, T]`, draws first.
    targets
        `[N]` or `[N, T]`.
    fair
        Whether to return the fair score.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN or infinite values, or fewer than two draws for the fair score.
    """
    x, y = real("draws", draws), real("targets", targets)
    _check_leading("draws", x, y.shape)
    num_draws = len(x)
    if fair and num_draws < 2:
        raise ValueError(
            f"draws: expected two or more for the fair score, got {num_draws}; draw more, or fair=False"
        )
    # the score does not depend on the origin; centred on y it is precise for values far from 0
    centred = np.sort(x - y, axis=0)
    rank_weight = (2 * np.arange(1, num_draws + 1) - num_draws - 1).reshape(-1, *[1] * y.ndim)
    pairs = num_draws * (num_draws - 1) if fair else num_draws**2
    score: Array = np.mean(np.abs(centred), axis=0) - np.sum(rank_weight * centred, axis=0) / pairs
    return score


def crps_normal(loc: Values, scale: Values, targets: Values) -> Array:
    """CRPS of a Normal prediction in closed form (Gneiting et al. 2005, eq. 5).

    `scale (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))` with `z = (y - loc) / scale`.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, in the targets' shape or one number for all.
    targets
        `[N]` or `[N, T]`.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN or infinite values, a scale that is not positive.
    """
    y = real("targets", targets)
    scales = like("scale", scale, y.shape)
    _check_positive(scales)
    score: Array = _mean_abs_normal(y - like("loc", loc, y.shape), scales) - scales / np.sqrt(np.pi)
    return score


def crps_normal_mixture(loc: Values, scale: Values, targets: Values, weights: Values | None = None) -> Array:
    """CRPS of a mixture of Normals in closed form (Grimit et al. 2006).

    `sum_m w_m A(y - mu_m, s_m) - 1/2 sum_m sum_l w_m w_l A(mu_m - mu_l, sqrt(s_m^2 + s_l^2))`, where
    `A(mu, s) = E|N(mu, s^2)| = mu (2 Phi(mu/s) - 1) + 2 s phi(mu/s)`. The cost is M (M + 1) / 2 passes over the rows;
    for many hundred components use `crps_sample` on draws.

    Parameters
    ----------
    loc
        Component means `[M, N]` or `[M, N, T]`, components first.
    scale
        Component standard deviations: in the shape of `loc`, `[M]`, or one number.
    targets
        `[N]` or `[N, T]`.
    weights
        `[M]`, or in the shape of `loc`; they sum to 1 over the components. None: equal weights.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN or infinite values, a scale that is not positive, weights that don't
        sum to 1.
    """
    y, locs = real("targets", targets), real("loc", loc)
    _check_leading("loc", locs, y.shape)
    scales = _per_component("scale", real("scale", scale), locs.shape)
    _check_positive(scales)
    shares = np.full(len(locs), 1 / len(locs)) if weights is None else unit("weights", weights)
    shares = _per_component("weights", shares, locs.shape)
    total = shares.sum(0)
    if np.abs(total - 1).max() > SUM_TOLERANCE:
        worst = total.flat[np.abs(total - 1).argmax()]
        raise ValueError(
            f"weights: expected a sum of 1 over the components, got {worst:.6g}; divide by their sum"
        )
    score: Array = np.sum(shares * _mean_abs_normal(y - locs, scales), axis=0)
    for m in range(len(locs)):  # one component at a time: an array [M, M, N] could exceed the memory
        spread = np.sqrt(scales[m] ** 2 + scales[m:] ** 2)
        pair = shares[m] * shares[m:] * _mean_abs_normal(locs[m] - locs[m:], spread)
        score -= pair.sum(0) - 0.5 * pair[0]  # pairs with m < l count twice, the pair m = l once
    return score


def _mean_abs_normal(loc: Array, scale: Array) -> Array:
    """`E|X|` for `X ~ N(loc, scale^2)`."""
    from scipy.special import ndtr

    z = loc / scale
    result: Array = loc * (2 * ndtr(z) - 1) + scale * np.sqrt(2 / np.pi) * np.exp(-0.5 * z**2)
    return result


def _check_leading(name: str, values: Array, shape: tuple[int, ...]) -> None:
    if values.ndim == 0 or values.shape[1:] != shape:
        raise ValueError(
            f"{name}: expected shape [any, {', '.join(map(str, shape))}], one leading axis more "
            f"than the targets' {shape}, got {values.shape}; move that axis to the front"
        )


def _check_positive(scale: Array) -> None:
    if scale.min() <= 0:
        raise ValueError(
            f"scale: expected positive standard deviations, got {scale.min():.6g}; check its source"
        )


def _per_component(name: str, values: Array, shape: tuple[int, ...]) -> Array:
    if values.shape == shape[:1]:
        values = values.reshape(-1, *[1] * (len(shape) - 1))
    elif values.shape not in {shape, ()}:
        raise ValueError(f"{name}: expected shape {shape} or {shape[:1]}, got {values.shape}; reshape it")
    return np.broadcast_to(values, shape)
