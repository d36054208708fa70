"""The value of a watch over a stream, and its alarm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bll_pyro.plots.style import BLUE, GREY, ORANGE, Size, panel, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.ood import Drift

HEADROOM = 3  # of the axis, over the threshold; a value may rise by thousands of nats after a change


def drift_trace(drift: Drift, *, axes: Axes | None = None, size: Size | None = None) -> Figure:
    """Log value of a watch over the rows, the threshold, and the row of the alarm.

    A point is the highest value since the point before. The axis ends a little above the threshold.

    Parameters
    ----------
    drift
        A watch that has seen rows.

    Raises
    ------
    ValueError
        If it has seen none.
    """
    if not drift.rows:
        raise ValueError(
            "drift_trace: expected a watch that has seen rows, got none; call .update(...) first"
        )
    figure, axes = panel(axes, size)
    rows, values = drift.history
    axes.plot(rows, values, color=BLUE, linewidth=1.4)
    label = f"threshold, alpha = {drift.alpha:g}"
    axes.axhline(drift.threshold, color=GREY, linewidth=1.2, linestyle="--", label=label)
    if drift.alarm_row is not None:
        label = f"alarm at row {drift.alarm_row:,}"
        axes.axvline(drift.alarm_row, color=ORANGE, linewidth=1.2, label=label)
    low = min(float(values.min()), 0.0)
    axes.set_ylim(low - 0.5, min(max(float(values.max()), 1.2 * drift.threshold), HEADROOM * drift.threshold))
    say(axes, "Evidence that rows have become stranger", "rows", "log of the value, nats")
    axes.legend(frameon=False, loc="upper left")
    return figure
