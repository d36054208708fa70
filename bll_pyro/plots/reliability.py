"""The reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro import metrics
from bll_pyro.plots.style import GREY, PALETTE, SKY, Size, panel, say
from bll_pyro.prediction.base import as_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability_diagram(
    predictions: Any,
    targets: Any,
    *,
    num_bins: int = 10,
    equal_mass: bool = False,
    prob: float = 0.95,
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Share of correct decisions against confidence in bins, with an interval for each share and the share of rows.

    Points on the diagonal are calibrated, points below it overconfident. The bars at the bottom are the shares of rows, on
    the scale of the axis.

    Parameters
    ----------
    predictions
        A prediction of classes or of one label per row, or several to compare by name, ``{name: prediction}``.
    targets
        The targets of the same rows.
    num_bins, equal_mass, prob
        Arguments of :func:`bll_pyro.metrics.reliability`: number of bins, whether they have equal numbers of rows, and the
        coverage of the intervals (Wilson).
    """
    named = predictions if isinstance(predictions, dict) else {"": predictions}
    figure, axes = panel(axes, size, (5.6, 5.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for i, (name, prediction) in enumerate(named.items()):
        given = as_targets(targets, prediction)
        found = metrics.reliability(prediction.probs, given, num_bins, equal_mass, prob)
        filled = found.count > 0
        x, y = found.confidence[filled], found.accuracy[filled]
        errors = np.abs(np.stack([found.lower[filled], found.upper[filled]]) - y)
        color = PALETTE[i % len(PALETTE)]
        label = f"{name}, ECE {found.ece:.3f}" if name else f"ECE {found.ece:.3f}"
        axes.errorbar(
            x, y, errors, color=color, marker="o", markersize=4, linewidth=1.4, capsize=2, label=label
        )
        if i == 0:
            width = 0.8 * np.diff(x).min() if len(x) > 1 else 0.05
            share = found.count[filled] / found.count.sum()
            axes.bar(x, share, min(width, 0.06), color=SKY, alpha=0.35, zorder=0, label="share of rows")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    # below the axes, because intervals may lie anywhere inside; a wider legend would make them narrow
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.12), ncols=2, fontsize=9)
    say(axes, "Confidence and what came true", "confidence", "share that was right")
    return figure
