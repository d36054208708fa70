"""Posterior of the weights: forest plot and correlations of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLUE, DIVERGING, GREY, LABEL, TICK, Size, panel, say

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots import PlotCollection
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 60  # most weights in one plot


def weights_forest(
    tree: xr.DataTree,
    *,
    num_features: int = 3,
    outputs: Sequence[Any] | None = None,
    ci_probs: tuple[float, float] = (0.5, 0.89),
    size: Size | None = None,
) -> PlotCollection:
    """Forest plot by ArviZ of the weights of each output with the largest absolute posterior mean: mean and two intervals.

    Weights are those of standardised features, so their sizes are comparable.

    Parameters
    ----------
    tree
        Result of ``fit.to_datatree(...)``; its ``class_names``, ``output_names`` and ``feature_names`` are the labels.
    num_features
        Number of weights per output.
    outputs
        Outputs to show, by name; None shows all.
    ci_probs
        Probabilities of the two equal-tailed intervals.

    Raises
    ------
    ValueError
        If the tree has no weights, or there would be more than 60 lines.
    """
    import arviz as az

    draws = strongest(tree, num_features, outputs)
    height = 0.9 + 0.24 * draws.sizes["weight"]
    one = az.from_dict(
        {"posterior": {"w": draws.values}}, dims={"w": ["weight"]}, coords={"weight": draws["weight"].values}
    )
    plot = az.plot_forest(
        one,
        combined=True,
        ci_probs=ci_probs,
        labels=["weight"],
        visuals={"point_estimate": {"color": BLUE}, "trunk": {"color": BLUE}, "twig": {"color": BLUE}},
        figure_kwargs={"figsize": size or (7.0, height)},
    )
    figure = plot.viz["figure"].item()
    figure.set_layout_engine("constrained")
    names, axes = figure.axes
    names.set(xlabel="", xticks=[])  # the column of labels needs no scale
    names.spines[:].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    percents = " and ".join(f"{100 * prob:g} %" for prob in ci_probs)
    say(axes, x=f"weight of a standardised feature: mean, {percents} intervals")
    return plot


def weights_correlation(
    tree: xr.DataTree,
    *,
    num_features: int = 3,
    outputs: Sequence[Any] | None = None,
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Posterior correlations of the weights of each output with the largest absolute posterior mean.

    Weights of correlated features are correlated in the posterior; mean-field guides in plain axes have no correlations.

    Parameters
    ----------
    tree
        Result of ``fit.to_datatree(...)``.
    num_features
        Number of weights per output.
    outputs
        Outputs to show, by name; None shows all.

    Raises
    ------
    ValueError
        If the tree has no weights, there would be more than 60 lines, or there are fewer than two draws.
    """
    draws = strongest(tree, num_features, outputs)
    names, flat = draws["weight"].values, draws.values.reshape(-1, draws.sizes["weight"])
    if len(flat) < 2:
        raise ValueError(f"weights_correlation: expected at least 2 draws, got {len(flat)}")
    side = 2.6 + 0.22 * len(names)
    figure, axes = panel(axes, size, (side + 0.6, side))
    with np.errstate(invalid="ignore"):  # the correlation of a constant weight is NaN, shown as 0
        correlation = np.nan_to_num(np.corrcoef(flat, rowvar=False).reshape(len(names), -1))
    image = axes.imshow(correlation, cmap=DIVERGING, vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=TICK)
    axes.set_yticks(range(len(names)), names, fontsize=TICK)
    per_output = len(names) // len(set(draws["output"].values.tolist()))
    for edge in np.arange(per_output, len(names), per_output) - 0.5:  # between outputs
        axes.axhline(edge, color="white", linewidth=1.5)
        axes.axvline(edge, color="white", linewidth=1.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    say(axes, "Posterior correlation of weights")
    figure.colorbar(image, ax=axes, shrink=0.7, ticks=[-1, -0.5, 0, 0.5, 1]).set_label(
        "correlation", fontsize=LABEL
    )
    return figure


def strongest(tree: xr.DataTree, num_features: int, outputs: Sequence[Any] | None) -> xr.DataArray:
    """Draws ``[chain, draw, weight]`` of the weights of each output with the largest absolute mean, largest first."""
    import xarray as xr

    if "posterior" not in tree.children or "weight" not in tree["posterior"].data_vars:
        raise ValueError(
            f"expected a tree of fit.to_datatree(...) with the variable posterior/weight, got {list(tree.children)}"
        )
    weight = tree["posterior"].to_dataset()["weight"]
    names = weight["output"].values.tolist()
    chosen = names if outputs is None else list(outputs)
    unknown = [one for one in chosen if one not in names]
    if unknown or not chosen:
        raise ValueError(f"outputs: expected some of {names}, got {unknown or 'none'}")
    count = min(num_features, weight.sizes["feature"])
    if not 1 <= count * len(chosen) <= MAX_ROWS:
        raise ValueError(
            f"num_features: expected 1 to {MAX_ROWS // len(chosen) or 1} for {len(chosen)} outputs, got {num_features}; "
            "choose some outputs, or fewer features"
        )
    parts, labels, owners = [], [], []
    for one in chosen:
        of_output = weight.sel(output=one)
        mean = of_output.mean(("chain", "draw"))
        order = np.argsort(-np.abs(mean.values), kind="stable")[:count]
        parts.append(of_output.isel(feature=order).transpose("chain", "draw", "feature").values)
        features = of_output["feature"].values[order].tolist()
        owner = "" if len(names) == 1 else f"{_name('output', one)}, "  # a single output goes without saying
        labels += [owner + _name("feature", feature) for feature in features]
        owners += [one] * count
    coords = {"weight": np.array(labels), "output": ("weight", np.array(owners))}
    return xr.DataArray(np.concatenate(parts, -1), dims=("chain", "draw", "weight"), coords=coords)


def _name(what: str, label: Any) -> str:
    return f"{what} {label}" if isinstance(label, int) else str(label)
