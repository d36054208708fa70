"""Pictures of the practice guide: curves over a logarithmic axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"))  # told apart without colours too


def lines(
    path: Path,
    places: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    top: float | None = None,
) -> None:
    """Draw curves over ``places`` into a file; values above ``top`` leave the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes: Any = figure.subplots()
    for (name, values), (marker, style) in zip(curves.items(), STYLES):
        axes.plot(places, values, marker=marker, linestyle=style, label=name)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="0.6", linewidth=0.8)
    if top is not None:
        axes.set_ylim(top=top)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
