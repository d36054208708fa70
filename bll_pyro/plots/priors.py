"""Prior predictive distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bll_pyro.plots.style import BLUE, GREY, LABEL, ORANGE, ROW_WIDTH, Size, new_picture, plain, say

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_BINS = 40
KEPT = (0.001, 0.999)  # quantiles that bound the axis, which heavy tails would otherwise dominate


def prior_predictive(trees: xr.DataTree | Mapping[str, xr.DataTree], *, size: Size | None = None) -> Figure:
    """Outputs under the prior, and below them entropies of classes, or targets with those observed.

    One column per prior. With classes the dashed line is the maximum entropy, log K: a prior with entropies near it is
    uninformative, one with entropies near 0 is certain before it has seen data. Otherwise the orange histogram shows the
    observed targets, if the tree has them: a prior should cover them, but not be wider by orders of magnitude.

    Parameters
    ----------
    trees
        Result of :func:`bll_pyro.prior_predictive`; several by name are drawn side by side.

    Raises
    ------
    ValueError
        If a tree has no outputs under the prior.
    """
    import xarray as xr

    named = {"": trees} if isinstance(trees, xr.DataTree) else dict(trees)
    for name, tree in named.items():
        if "prior_predictive" not in tree.children or "f" not in tree["prior_predictive"].data_vars:
            raise ValueError(
                f"prior_predictive: expected trees of bll.prior_predictive(layer, features), got another kind of tree {name!r}"
            )
    width = ROW_WIDTH if len(named) > 1 else 5.0
    figure = new_picture(size, (width, 5.2))
    grid = figure.subplots(2, len(named), squeeze=False, sharey="row")
    for column, (name, tree) in enumerate(named.items()):
        _outputs(grid[0, column], tree, name)
        _targets(grid[1, column], tree)
        if column:
            for axes in grid[:, column]:
                axes.set_ylabel("")
    return figure


def _outputs(axes: Axes, tree: xr.DataTree, name: str) -> None:
    outputs = tree["prior_predictive"].to_dataset()["f"].values.ravel()
    low, high = np.quantile(outputs, KEPT)
    _shares(axes, outputs, low, high, BLUE)
    spread = float(outputs.std())
    axes.text(
        0.97,
        0.95,
        f"sd {spread:.3g}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=LABEL,
        color=GREY,
    )
    plain(axes)
    say(axes, name, "output f under the prior", "share")


def _targets(axes: Axes, tree: xr.DataTree) -> None:
    group = tree["prior_predictive"].to_dataset()
    plain(axes)
    if "entropy" in group.data_vars:
        entropy = group["entropy"].values.ravel()
        num_classes = group.sizes.get("class", 2)
        largest = float(np.log(num_classes))
        _shares(axes, entropy, 0.0, largest * 1.0001, BLUE)
        axes.axvline(largest, color=GREY, linewidth=1, linestyle="--")
        axes.annotate(
            f"log {num_classes}", (largest, 1), xycoords=("data", "axes fraction"), xytext=(-4, -4),
            textcoords="offset points", ha="right", va="top", color=GREY,
        )  # fmt: skip
        say(axes, x="entropy of the class under the prior, nats", y="share")
        return
    drawn = group["y"].values.ravel()
    low, high = np.quantile(drawn, KEPT)
    observed = None
    if "observed_data" in tree.children:
        observed = tree["observed_data"].to_dataset()["y"].values.ravel()
    if observed is not None:
        low, high = min(low, observed.min()), max(high, observed.max())
    _shares(axes, drawn, low, high, BLUE, "prior")
    if observed is not None:
        _shares(axes, observed, low, high, ORANGE, "observed")
        axes.legend(frameon=False, loc="upper right")
    say(axes, x="target y under the prior", y="share")


def _shares(
    axes: Axes, values: np.ndarray, low: float, high: float, color: str, label: str | None = None
) -> None:
    """Histogram of the share of values in each bin; values out of range are not drawn."""
    weights = np.full(len(values), 1 / len(values))
    high = high if high > low else low + 1.0
    axes.hist(values, NUM_BINS, range=(low, high), weights=weights, color=color, alpha=0.7, label=label)
