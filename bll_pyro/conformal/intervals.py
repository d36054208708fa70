"""Conformal intervals for real values from a mean and a scale, with finite-sample coverage."""

from __future__ import annotations

import numpy as np

from bll_pyro.metrics.arrays import Array, Values, like, real


def normalized_residual_scores(loc: Values, scale: Values, targets: Values) -> Array:
    """Absolute residual of each target in predictive standard deviations: `|y - loc| / scale`.

    The width of the intervals is then proportional to `scale` (normalised residuals: Papadopoulos et al. 2008; Lei et
    al. 2018); `scale=1.0` gives plain residuals and one width for all.

    Parameters
    ----------
    loc, scale
        Predictive mean and standard deviation, in the targets' shape or one number.
    targets
        `[N]` or `[N, T]`. For several targets calibrate each column, or the maximum of each row for a joint box.

    Raises
    ------
    ValueError
        For shapes that differ, NaN or infinite values, or a scale that is not positive.
    """
    y = real("targets", targets)
    return np.abs(y - like("loc", loc, y.shape)) / _positive(scale, y.shape)


def normalized_residual_interval(loc: Values, scale: Values, threshold: float) -> tuple[Array, Array]:
    """Interval `loc -+ threshold scale`, which contains a new target with probability at least `1 - alpha`.

    Parameters
    ----------
    loc, scale
        Predictive mean and standard deviation of the new rows, one shape, or one number for the scale.
    threshold
        From `conformal_quantile(normalized_residual_scores(...), alpha)`.

    Returns
    -------
    tuple[Array, Array]
        Lower and upper bounds in the shape of `loc`, in the targets' units.

    Raises
    ------
    ValueError
        For shapes that differ, NaN or infinite values, a scale that is not positive, or a negative threshold.
    """
    centre = real("loc", loc)
    if not threshold >= 0:
        raise ValueError(f"threshold: expected 0 or more, got {threshold}; take it from conformal_quantile")
    half_width = threshold * _positive(scale, centre.shape)
    return centre - half_width, centre + half_width


def _positive(scale: Values, shape: tuple[int, ...]) -> Array:
    array = like("scale", scale, shape)
    if array.min() <= 0:
        raise ValueError(
            f"scale: expected positive standard deviations, got {array.min():.6g}; check its source"
        )
    return array
