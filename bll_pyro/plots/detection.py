"""Histograms of out-of-distribution scores with the detector's threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLUE, GREY, ORANGE, Size, panel, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.ood import Detector


def ood_scores(
    detector: Detector,
    known: Any,
    unknown: Any = None,
    *,
    num_bins: int = 50,
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Histograms of a detector's scores for known and unknown rows, its threshold, and the share of alarms.

    Parameters
    ----------
    detector
        A calibrated detector.
    known
        Inputs from the distribution of the calibration rows, but other rows; or their verdict.
    unknown
        Inputs from another distribution, or their verdict; None draws only the known ones.
    num_bins
        Number of bins. They span the middle 96 % of all scores and the threshold; scores beyond count in the outermost bins.
    """
    verdicts = {"known": known} if unknown is None else {"known": known, "unknown": unknown}
    verdicts = {k: v if hasattr(v, "p_value") else detector.detect(v) for k, v in verdicts.items()}
    figure, axes = panel(axes, size)
    scores = {name: verdict.score.double().cpu().numpy() for name, verdict in verdicts.items()}
    low, high = np.quantile(np.concatenate(list(scores.values())), [0.02, 0.98])
    threshold = detector.threshold
    edges = np.linspace(min(low, threshold), max(high, threshold), num_bins + 1)
    for (name, values), color in zip(scores.items(), (BLUE, ORANGE), strict=False):
        alarm = float(verdicts[name].is_ood.double().mean())
        clipped = values.clip(edges[0], edges[-1])
        weights = np.full(len(values), 1 / len(values))
        label = f"{name}: {100 * alarm:.1f} % raise an alarm"
        axes.hist(clipped, edges.tolist(), weights=weights, color=color, alpha=0.55, label=label)
    label = f"threshold, alpha = {detector.alpha:g}"
    axes.axvline(threshold, color=GREY, linewidth=1.2, linestyle="--", label=label)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.8)  # the threshold may pass behind it
    name = type(detector.score).__name__
    say(axes, "How strange the rows are", f"{name} (larger is further out)", "share of rows")
    return figure
