"""The fan chart of a regression on one input: the median with intervals of several probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLACK, BLUE, Size, panel, say
from bll_pyro.prediction import ValuePrediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.prediction.intervals import IntervalKind

FAINTEST, DARKEST = 0.18, 0.55  # opacity of the widest and of the narrowest band


def fan_chart(
    prediction: ValuePrediction,
    x: Any,
    *,
    data: tuple[Any, Any] | None = None,
    probs: Sequence[float] = (0.5, 0.8, 0.95),
    kind: IntervalKind = "equal_tailed",
    title: str = "",
    labels: tuple[str, str] = ("input", "target"),
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Median and intervals of a prediction along one input, with the data on top.

    Parameters
    ----------
    prediction
        Prediction of one real value or count per row, at inputs ``x [N]``.
    x
        The inputs ``[N]``, in any order.
    data
        Inputs and targets to show as points.
    probs
        Probabilities of the intervals.
    kind
        Kind of the intervals; see :meth:`~bll_pyro.prediction.ValuePrediction.interval`.
    title, labels
        Title, and the labels of the two axes, with their units.

    Raises
    ------
    ValueError
        If there are several targets, or not one input for each predicted row.
    """
    at = np.asarray(x, dtype=float)
    if prediction.mean.dim() != 1 or at.shape != (len(prediction),):
        raise ValueError(
            f"fan_chart: expected one target per row and one input for each of {len(prediction)} rows, got targets of shape "
            f"{list(prediction.mean.shape)} and inputs of shape {list(at.shape)}; draw one target and one input at a time"
        )
    figure, axes = panel(axes, size)
    order = np.argsort(at, kind="stable")
    shades = np.linspace(FAINTEST, DARKEST, len(probs))
    for prob, shade in zip(sorted(probs, reverse=True), shades, strict=True):
        low, high = (end.cpu().numpy()[order] for end in prediction.interval(prob, kind))
        # white below each band, so that the opacities of overlapping bands do not add up
        axes.fill_between(at[order], low, high, color="white", linewidth=0, zorder=1)
        axes.fill_between(
            at[order], low, high, color=BLUE, alpha=shade, linewidth=0, zorder=1, label=f"{prob:.0%} interval"
        )
    median = prediction.quantile(0.5).cpu().numpy()[order]
    axes.plot(at[order], median, color=BLUE, linewidth=1.8, zorder=2, label="median")
    if data is not None:
        axes.plot(*map(np.asarray, data), ".", color=BLACK, markersize=4, zorder=3, label="data")
    say(axes, title, *labels)
    axes.margins(x=0.01)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], frameon=False, loc="best", fontsize=9)
    return figure
