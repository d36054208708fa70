"""Uncertainty of predictions: aleatoric against epistemic, and draws of one row's class probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.plots.style import BLACK, BLUE, GREY, PALETTE, Size, panel, say

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bll_pyro.prediction import Prediction

NUM_GRID = 400  # points of a density's curve
OVERLAP = 1.35  # height of a ridge, in distances between ridges
MIN_WIDTH = 0.008  # smallest bandwidth of a kernel, in probability, so that a ridge is visible


def decomposition(
    predictions: Prediction | Mapping[str, Prediction],
    *,
    axes: Axes | None = None,
    size: Size | None = None,
) -> Figure:
    """Aleatoric against epistemic uncertainty of each row; grey lines join points of equal total uncertainty.

    In nats for classes and labels, else variances in the squared unit of the target; summed over the labels or targets of a
    row.

    Parameters
    ----------
    predictions
        A prediction, or several by name, e.g. ``{"known": ..., "unknown": ...}``, each in its own colour.

    Raises
    ------
    ValueError
        If there are no predictions.
    """
    from bll_pyro.prediction import ClassPrediction, LabelPrediction

    groups = dict(predictions) if isinstance(predictions, Mapping) else {"": predictions}
    if not groups:
        raise ValueError("decomposition: expected at least one prediction, got none")
    figure, axes = panel(axes, size, (5.6, 4.8))
    points = {name: _parts(one) for name, one in groups.items()}
    largest = max(float((a + e).max()) for a, e in points.values())
    smallest_group = min(len(a) for a, _ in points.values())
    alpha = float(np.clip(30 / np.sqrt(smallest_group * len(points)), 0.25, 0.8))
    for (name, (aleatoric, epistemic)), color in zip(points.items(), PALETTE * len(points), strict=False):
        axes.scatter(
            aleatoric,
            epistemic,
            s=12,
            color=color,
            alpha=alpha,
            linewidths=0,
            label=name or None,
            rasterized=True,
        )
    for total in axes.xaxis.get_major_locator().tick_values(0, largest)[1:]:
        axes.plot([0, total], [total, 0], color=GREY, linewidth=0.6, alpha=0.6, zorder=0)
    tops = [max(float(part[which].max()) for part in points.values()) for which in (0, 1)]
    axes.set(xlim=(-0.02 * tops[0], 1.06 * tops[0]), ylim=(-0.02 * tops[1], 1.06 * tops[1]))
    entropies = any(isinstance(one, ClassPrediction | LabelPrediction) for one in groups.values())
    unit = "nats" if entropies else "variance"
    say(axes, "Uncertainty, split in two", f"aleatoric, {unit}", f"epistemic, {unit}")
    if any(groups):
        axes.legend(frameon=False, loc="best")
    return figure


def class_probs(
    tree: xr.DataTree, obs: Any = 0, *, axes: Axes | None = None, size: Size | None = None
) -> Figure:
    """Draws of the class probabilities of one row, as a ridge per class; the points are the predictive probabilities.

    Narrow ridges away from 0 and 1 mean aleatoric uncertainty, wide ridges epistemic uncertainty.

    Parameters
    ----------
    tree
        Result of ``fit.to_datatree(..., class_probs=True)``.
    obs
        Coordinate of the row.

    Raises
    ------
    ValueError
        If the tree has no class probabilities, or not this row.
    """
    if "class_probs" not in tree.children:
        raise ValueError(
            "class_probs: expected a tree with class probabilities, got one without; make it with "
            "fit.to_datatree(..., class_probs=True)"
        )
    probs = tree["class_probs"].to_dataset()["y"]
    if obs not in probs["obs"].values:
        raise ValueError(
            f"class_probs(obs=...): expected a row of the tree, 0 to {probs.sizes['obs'] - 1}, got {obs!r}"
        )
    draws = probs.sel(obs=obs).stack(sample=("chain", "draw")).transpose("class", "sample")
    names = draws["class"].values.tolist()
    figure, axes = panel(axes, size, (7.0, 1.2 + 0.42 * len(names)))
    grid = np.linspace(0, 1, NUM_GRID)
    for place, values in enumerate(draws.values):
        base = len(names) - 1 - place
        density = _density(values, grid)
        ridge = base + OVERLAP * density / density.max()
        axes.fill_between(grid, base, ridge, color=BLUE, alpha=0.55, linewidth=0, zorder=2 * place)
        axes.plot(grid, ridge, color="white", linewidth=1.0, zorder=2 * place + 1)
        axes.plot(values.mean(), base, "o", color=BLACK, markersize=4, zorder=100, clip_on=False)
    axes.set_yticks(range(len(names)), [str(name) for name in reversed(names)])
    axes.set(xlim=(0, 1), ylim=(-0.25, len(names) - 1 + OVERLAP + 0.15))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    say(axes, f"Draws of the class probabilities of row {obs}", "probability", "class")
    return figure


def _parts(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Aleatoric and epistemic uncertainty ``[N]``, summed over labels or targets."""
    parts = []
    for value in (prediction.aleatoric, prediction.epistemic):
        numbers = value.detach().double().cpu().numpy()
        parts.append(numbers.reshape(len(numbers), -1).sum(1))
    return parts[0], parts[1]


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Kernel density on [0, 1] with reflection at both ends and Silverman's bandwidth."""
    low, high = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std()), float(high - low) / 1.34) or float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, MIN_WIDTH)
    counts, edges = np.histogram(values.clip(0, 1), bins=2048, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    filled = counts > 0
    mirrored = np.concatenate([centres[filled], -centres[filled], 2 - centres[filled]])
    weights = np.tile(counts[filled], 3)
    return np.asarray(np.exp(-0.5 * ((grid[:, None] - mirrored) / width) ** 2) @ weights)
