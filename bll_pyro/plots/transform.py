"""The histogram of the probability integral transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro import metrics
from bll_pyro.plots.style import BLUE, GREY, Size, panel, say
from bll_pyro.prediction import OrdinalPrediction, ValuePrediction
from bll_pyro.prediction.base import as_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 0.95  # probability that a bar of calibrated predictions is within the band


def pit_histogram(
    prediction: ValuePrediction | OrdinalPrediction,
    targets: Any,
    *,
    num_bins: int = 10,
    title: str = "Probability integral transform",
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Histogram of ``F_n(y_n)``, whose bars have heights near 1 if the predictions are calibrated.

    A hump means predictions that are too wide, a U too narrow, a trend a bias. For calibrated predictions each bar is within
    the band with probability 0.95 (exact, binomial). Counts and ordered classes spread each target's share over
    ``F(y - 1)`` to ``F(y)`` (Czado et al. 2009), without random numbers; the band is then slightly too wide.

    Parameters
    ----------
    prediction
        Prediction of real values, counts or ordered classes.
    targets
        Targets of the same rows.
    num_bins
        Number of bars.
    """
    from scipy.stats import binom

    values = as_targets(targets, prediction)
    is_discrete = isinstance(prediction, OrdinalPrediction) or prediction.mixture.likelihood.is_count
    cdf = prediction.cdf_of_number if isinstance(prediction, OrdinalPrediction) else prediction.cdf
    at = cdf(values)
    below = cdf(values - 1) if is_discrete else at
    heights = metrics.pit_histogram(below.double().clamp(0, 1), at.double().clamp(0, 1), num_bins)
    num_values = at.numel()
    ends = binom.ppf([(1 - BAND) / 2, (1 + BAND) / 2], num_values, 1 / num_bins) * num_bins / num_values
    figure, axes = panel(axes, size)
    edges = np.linspace(0, 1, num_bins + 1)
    axes.bar(edges[:-1], heights, width=1 / num_bins, align="edge", color=BLUE, edgecolor="white")
    axes.axhspan(*ends, color=GREY, alpha=0.25, linewidth=0, label=f"{BAND:.0%} of right predictions")
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    say(axes, title, "F(target)", "density")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.25 * max(heights.max(), ends[1]))
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return figure
