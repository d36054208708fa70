"""The risk-coverage curve of selective prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bll_pyro import metrics
from bll_pyro.plots.style import GREY, PALETTE, Size, panel, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def risk_coverage(
    uncertainties: Any, error: Any, *, axes: Axes | None = None, size: Size | None = None
) -> Figure:
    """Mean error of the accepted rows against their share, in order of increasing uncertainty (El-Yaniv and Wiener 2010).

    The dashed line is the error of all rows, the expected curve of an uninformative uncertainty.

    Parameters
    ----------
    uncertainties
        One uncertainty per row, ``[N]``, or several to compare by name, ``{"total": prediction.total, ...}``.
    error
        Loss of each row, ``[N]``: 0/1 for classes (``prediction.label != targets``), or any other.
    """
    named = uncertainties if isinstance(uncertainties, dict) else {"": uncertainties}
    figure, axes = panel(axes, size)
    for i, (name, uncertainty) in enumerate(named.items()):
        curve = metrics.risk_coverage(uncertainty, error)
        area = f"area {curve.risk.mean():.4g}"
        label = f"{name}, {area}" if name else area
        axes.plot(curve.coverage, curve.risk, color=PALETTE[i % len(PALETTE)], linewidth=1.6, label=label)
    axes.axhline(curve.risk[-1], color=GREY, linewidth=1, linestyle="--", label="all rows")
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False, loc="best")
    say(axes, "Error of the rows that are accepted", "share of rows accepted", "mean error")
    return figure
