"""The common style of plots: colours, sizes, a figure without pyplot, plain axes."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): distinguishable for colour-blind readers and in greyscale
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SKY, AMBER, PINK = "#56B4E9", "#E69F00", "#CC79A7"
BLACK, GREY = "#222222", "#777777"
PALETTE = (BLUE, ORANGE, GREEN, AMBER, PINK, SKY, BLACK)

DIVERGING = "RdBu_r"  # colormap of matplotlib for signed values, white at 0
WIDTH, HEIGHT, ROW_WIDTH = 7.0, 4.2, 10.0  # default sizes of a panel, and width of a row of panels, in inches
DPI = 110  # resolution of pictures, in dots per inch
TITLE, LABEL, TICK = 11, 10, 9  # font sizes of titles, axis labels and tick labels, in points

Size = tuple[float, float]


class Picture(Figure):
    """A matplotlib figure that notebooks display, and that is not registered with ``pyplot``."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        return buffer.getvalue()


def new_picture(size: Size | None = None, default: Size = (WIDTH, HEIGHT)) -> Picture:
    """An empty picture with constrained layout, in which labels do not overlap."""
    return Picture(figsize=size or default, layout="constrained", dpi=DPI)


def panel(axes: Axes | None, size: Size | None = None, default: Size = (WIDTH, HEIGHT)) -> tuple[Any, Axes]:
    """Figure and axes of a plot of one panel: the caller's axes, or those of a new picture."""
    if axes is None:
        figure = new_picture(size, default)
        axes = figure.subplots()
    elif size is not None:
        raise ValueError(
            "size and axes: expected one of them, got both; the figure of the given axes has a size already"
        )
    plain(axes)
    return axes.figure, axes


def plain(axes: Axes) -> None:
    """Remove the lines at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TICK)


def say(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Set the left-aligned title and the labels of the axes."""
    if title:
        axes.set_title(title, fontsize=TITLE, loc="left")
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
