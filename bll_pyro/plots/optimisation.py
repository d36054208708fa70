"""The ELBO of the training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bll_pyro.plots.style import BLUE, GREY, SKY, Size, panel, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.fitting import Fit


def elbo_trace(
    fit: Fit, *, window: int | None = None, axes: Axes | None = None, size: Size | None = None
) -> Figure:
    """ELBO of each step, its running mean, and the ELBO of the result, in nats per row.

    Estimates of single steps are noisy because of batches and draws; the running mean shows whether the ELBO still rises.
    The range of the axis follows the running mean, so that extreme first steps do not dominate it.

    Parameters
    ----------
    fit
        A fit by :class:`bll_pyro.SVI`.
    window
        Number of steps in the running mean; None takes a twentieth of all steps.

    Raises
    ------
    ValueError
        If the inference has no ELBO of each step, or the window is longer than the trace.
    """
    if fit.trace.elbo is None:
        raise ValueError(
            f"elbo_trace: expected a fit by SVI, which keeps the ELBO of each step, got {type(fit.inference).__name__}"
        )
    elbo = fit.trace.elbo.double().cpu().numpy() / fit.num_rows
    width = max(1, len(elbo) // 20) if window is None else window
    if not 1 <= width <= len(elbo):
        raise ValueError(f"elbo_trace(window=...): expected 1 to {len(elbo)} steps, got {window}")
    mean = np.convolve(elbo, np.full(width, 1 / width), mode="valid")
    figure, axes = panel(axes, size)
    steps = np.arange(1, len(elbo) + 1)
    axes.plot(steps, elbo, color=SKY, linewidth=0.6, alpha=0.7, label="each step")
    axes.plot(steps[width - 1 :], mean, color=BLUE, linewidth=1.8, label=f"mean of {width} steps")
    if fit.trace.final_elbo is not None:
        final = fit.trace.final_elbo / fit.num_rows
        axes.axhline(final, color=GREY, linewidth=1, linestyle="--", label=f"result: {final:.3f}")
    noise = 3 * float(np.std(elbo[len(elbo) // 2 :]))
    low, high = mean.min() - noise, max(mean.max(), elbo[len(elbo) // 2 :].max()) + noise / 3
    if high > low:
        axes.set_ylim(low, high)
    say(axes, "ELBO on its way up", "step", "ELBO, nats a row")
    axes.legend(frameon=False, loc="lower right")
    return figure
