"""Coverage of central intervals against their probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLUE, GREY, Size, panel, say
from bll_pyro.prediction import OrdinalPrediction
from bll_pyro.prediction.base import as_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.prediction import ValuePrediction

BAND = 0.95  # probability that the coverage of right intervals is within the band
PROBS = np.linspace(0.05, 0.95, 19)


def coverage_of_intervals(
    prediction: ValuePrediction | OrdinalPrediction,
    targets: Any,
    *,
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Share of targets inside the central intervals of each probability; right predictions follow the diagonal.

    Below it intervals are too narrow, above it too wide. The grey band holds the coverage of right intervals with probability 0.95
    (exact, binomial, for each probability by itself). Intervals of counts and ordered classes hold at least their probability, so
    that right ones lie on the diagonal or above it.

    Parameters
    ----------
    prediction
        Prediction of real values, counts or ordered classes.
    targets
        The targets of the same rows.
    """
    from scipy.stats import binom

    covered, number = shares_inside(prediction, targets, PROBS)
    low, high = (binom.ppf(q, number, PROBS) / number for q in ((1 - BAND) / 2, (1 + BAND) / 2))
    figure, axes = panel(axes, size, (5.6, 5.2))
    axes.fill_between(
        PROBS, low, high, color=GREY, alpha=0.25, linewidth=0, label=f"{BAND:.0%} of right intervals"
    )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.plot(
        PROBS,
        covered,
        color=BLUE,
        marker="o",
        markersize=4,
        linewidth=1.4,
        label="intervals of the prediction",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left")
    say(axes, "Intervals and what they held", "probability of the interval", "share of targets inside")
    return figure


def shares_inside(
    prediction: ValuePrediction | OrdinalPrediction, targets: Any, probs: Any
) -> tuple[list[float], int]:
    """Share of targets inside the central interval of each probability, and the number of targets.

    The interval of two quantiles holds y if ``F(y)`` reaches the lower and ``F(y - 1)`` (``F(y)`` of real values) stays under the
    upper probability, so that no quantile is computed.
    """
    values = as_targets(targets, prediction)
    cdf = prediction.cdf_of_number if isinstance(prediction, OrdinalPrediction) else prediction.cdf
    at = cdf(values).double().cpu().numpy().ravel()
    is_discrete = isinstance(prediction, OrdinalPrediction) or prediction.mixture.likelihood.is_count
    below = cdf(values - 1).double().cpu().numpy().ravel() if is_discrete else at
    shares = [float(np.mean((at >= (1 - prob) / 2) & (below < (1 + prob) / 2))) for prob in probs]
    return shares, at.size
