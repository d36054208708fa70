"""Residuals of predicted values against the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLUE, GREY, Size, panel, say
from bll_pyro.prediction.base import as_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.prediction import ValuePrediction

INSIDE = 2.0  # standard deviations between which about 95 % of Normal residuals lie


def residuals(
    prediction: ValuePrediction, targets: Any, *, axes: Axes | None = None, size: Size | None = None
) -> Figure:
    """``(target - mean) / scale`` of each target against its predicted mean, in predictive standard deviations.

    A band of even width around zero means that mean and spread are right everywhere. A bend is a mean that misses something, a
    funnel a spread that does not follow the noise. Dashed lines are at plus and minus 2.

    Parameters
    ----------
    prediction
        Prediction of real values or counts.
    targets
        The targets of the same rows.
    """
    values = as_targets(targets, prediction).to(prediction.mean).view(prediction.mean.shape)
    figure, axes = panel(axes, size)
    standardized = ((values - prediction.mean) / prediction.scale).double().cpu().numpy().ravel()
    mean = prediction.mean.double().cpu().numpy().ravel()
    alpha = float(np.clip(30 / np.sqrt(len(mean)), 0.25, 0.8))
    axes.scatter(mean, standardized, s=10, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
    axes.axhline(0, color=GREY, linewidth=1)
    for line in (-INSIDE, INSIDE):
        axes.axhline(line, color=GREY, linewidth=1, linestyle="--")
    say(axes, "Residuals", "predicted mean, unit of the target", "residual, predictive standard deviations")
    return figure
