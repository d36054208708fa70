"""Probability integral transform (PIT): where targets fall in their predictive distributions.

Uniform is right. A hump means predictions too wide, a U too narrow, a slope a bias. Continuous targets:
`pit(cdf(y))`. Counts: `pit(pit_discrete(cdf(y - 1), cdf(y), generator))`, or the picture without randomness,
`pit_histogram`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bll_pyro.metrics.arrays import Array, Values, at_least_one, share, unit


@dataclass(frozen=True, eq=False)
class Pit:
    """PIT values against the uniform distribution.

    Attributes
    ----------
    values
        `[N]`, the PIT values in ascending order: the x axis of an ECDF plot.
    ecdf
        `[N]`, `i / N`: its y axis.
    lower, upper
        `[N]`, band that holds the whole ECDF of a uniform sample with probability `prob` (exact, Kolmogorov).
    statistic
        Kolmogorov-Smirnov distance of the ECDF from the diagonal.
    p_value
        Probability of such a distance or a larger one, if the PIT values are uniform and independent.
    """

    values: Array
    ecdf: Array
    lower: Array
    upper: Array
    statistic: float
    p_value: float


def pit(cdf_values: Values, prob: float = 0.95) -> Pit:
    """Judge PIT values `F_n(y_n)` by Kolmogorov and Smirnov, with the band for their ECDF (Dawid 1984).

    Parameters
    ----------
    cdf_values
        `[N]` or `[N, T]`, the predictive distribution function at each target. Continuous targets only:
        counts pile up at a few values and seem wrong even when they are right; they go through `pit_discrete`
        first.
    prob
        Probability of the band, for the whole curve at once.

    Raises
    ------
    ValueError
        For values outside [0, 1], NaN, or `prob` outside (0, 1).
    """
    from scipy.stats import kstest, kstwo

    values = np.sort(unit("cdf_values", cdf_values).ravel())
    band = float(kstwo.ppf(share("prob", prob), len(values)))
    ecdf = np.arange(1, len(values) + 1) / len(values)
    test = kstest(values, "uniform")
    lower, upper = np.clip(values - band, 0, 1), np.clip(values + band, 0, 1)
    return Pit(values, ecdf, lower, upper, float(test.statistic), float(test.pvalue))


def pit_discrete(cdf_below: Values, cdf_at: Values, generator: torch.Generator) -> Array:
    """Randomised PIT of counts (Smith 1985; Czado et al. 2009): `F(y - 1) + u (F(y) - F(y - 1))`, u uniform.

    Parameters
    ----------
    cdf_below, cdf_at
        The predictive distribution function just below and at each target, one shape.
    generator
        Source of `u`; the global random state is not touched.

    Returns
    -------
    Array
        Values uniform under a right prediction, in the shape of the arguments.

    Raises
    ------
    ValueError
        For shapes that differ, values outside [0, 1], NaN, or `cdf_below > cdf_at`.
    """
    below, at = _steps(cdf_below, cdf_at)
    u = torch.rand(below.shape, generator=generator, dtype=torch.float64, device=generator.device)
    values: Array = below + u.cpu().numpy() * (at - below)
    return values


def pit_histogram(cdf_below: Values, cdf_at: Values, num_bins: int = 10) -> Array:
    """Heights of the PIT histogram of counts without randomness (Czado et al. 2009).

    Each target spreads its mass evenly from `F(y - 1)` to `F(y)`. The heights are densities: their mean is 1,
    and under a right prediction each has expectation 1. For continuous targets `cdf_below = cdf_at` gives the
    plain histogram, with bins closed on the right.

    Parameters
    ----------
    cdf_below, cdf_at
        The predictive distribution function just below and at each target, one shape.
    num_bins
        Number of bins of equal width.

    Raises
    ------
    ValueError
        For shapes that differ, values outside [0, 1], NaN, `cdf_below > cdf_at`, or `num_bins < 1`.
    """
    below, at = (values.ravel() for values in _steps(cdf_below, cdf_at))
    width = at - below
    step = width == 0
    reached = np.zeros(at_least_one("num_bins", num_bins) + 1)
    for i in range(1, num_bins):  # nothing is reached at 0, all of it at 1
        edge = i / num_bins
        ramp = np.clip((edge - below) / np.where(step, 1, width), 0, 1)
        reached[i] = np.mean(np.where(step, at <= edge, ramp))
    reached[-1] = 1
    return np.diff(reached) * num_bins


def _steps(cdf_below: Values, cdf_at: Values) -> tuple[Array, Array]:
    below, at = unit("cdf_below", cdf_below), unit("cdf_at", cdf_at)
    if below.shape != at.shape:
        raise ValueError(
            f"expected one shape, got cdf_below {below.shape} and cdf_at {at.shape}; pass the same rows"
        )
    if (below > at).any():
        raise ValueError(
            f"expected cdf_below <= cdf_at, got {int((below > at).sum())} of {at.size} the other way round; "
            "pass F(y - 1) first, then F(y)"
        )
    return below, at
