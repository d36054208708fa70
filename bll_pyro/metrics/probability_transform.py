"""Probability integral transform (PIT): the predictive distribution function at each target.

PIT values of calibrated predictions are uniform. A hump in their histogram means predictions that are too wide, a U too
narrow, a trend a bias. Continuous targets: `pit(cdf(y))`. Counts: `pit(pit_discrete(cdf(y - 1), cdf(y), generator))`, or
without random numbers `pit_histogram`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bll_pyro.metrics.arrays import Array, Values, at_least_one, checked_share, unit
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class Pit(Summary):
    """PIT values and their comparison with the uniform distribution.

    Attributes
    ----------
    values
        `[N]`, the PIT values in ascending order: the x axis of an ECDF plot.
    ecdf
        `[N]`, `i / N`: its y axis.
    lower, upper
        `[N]`, band that contains the whole ECDF of a uniform sample with probability `prob` (exact, Kolmogorov).
    statistic
        Kolmogorov-Smirnov distance of the ECDF from the diagonal.
    p_value
        Probability of this distance or a larger one, if the PIT values are uniform and independent.
    """

    values: Array
    ecdf: Array
    lower: Array
    upper: Array
    statistic: float
    p_value: float


def pit(cdf_values: Values, prob: float = 0.95) -> Pit:
    """Kolmogorov-Smirnov test of PIT values `F_n(y_n)`, with the band for their ECDF (Dawid 1984).

    Parameters
    ----------
    cdf_values
        `[N]` or `[N, T]`, the predictive distribution function at each target. For continuous targets only: the PIT of
        counts is not uniform even if they are calibrated, so pass counts through `pit_discrete` first.
    prob
        Simultaneous probability of the band, in (0, 1).

    Raises
    ------
    ValueError
        For values outside [0, 1], NaN, or `prob` outside (0, 1).
    """
    from scipy.stats import kstest, kstwo

    values = np.sort(unit("cdf_values", cdf_values).ravel())
    band = float(kstwo.ppf(checked_share("prob", prob), len(values)))
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
        PIT values, uniform for calibrated predictions, in the shape of the arguments.

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
    and for calibrated predictions each has expectation 1. For continuous targets `cdf_below = cdf_at` gives the
    ordinary histogram, with bins closed on the right.

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
    cumulative = np.zeros(at_least_one("num_bins", num_bins) + 1)
    for i in range(1, num_bins):  # the distribution function of the mass at each inner edge
        edge = i / num_bins
        ramp = np.clip((edge - below) / np.where(step, 1, width), 0, 1)
        cumulative[i] = np.mean(np.where(step, at <= edge, ramp))
    cumulative[-1] = 1
    return np.diff(cumulative) * num_bins


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
