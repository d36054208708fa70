"""What all pictures share: colours, a figure that belongs to no one else, axes without ornament."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): differ for colour-blind eyes, and in grey
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SKY, AMBER, PINK = "#56B4E9", "#E69F00", "#CC79A7"
BLACK, GREY = "#222222", "#777777"
PALETTE = (BLUE, ORANGE, GREEN, AMBER, PINK, SKY, BLACK)

SEQUENTIAL, DIVERGING = "cividis_r", "RdBu_r"  # colormaps of matplotlib; the second is centred at 0
WIDTH, HEIGHT, ROW_WIDTH = 7.0, 4.2, 10.0  # inches
DPI = 110
TITLE, LABEL, TICK = 11, 10, 9  # points

Size = tuple[float, float]


class Picture(Figure):
    """A matplotlib figure that a notebook shows by itself, and that ``pyplot`` knows nothing of."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
        return buffer.getvalue()


def new_picture(size: Size | None = None, default: Size = (WIDTH, HEIGHT)) -> Picture:
    """An empty picture with a layout that keeps labels apart."""
    return Picture(figsize=size or default, layout="constrained", dpi=DPI)


def panel(axes: Axes | None, size: Size | None = None, default: Size = (WIDTH, HEIGHT)) -> tuple[Any, Axes]:
    """Figure and axes of a picture of one panel: the caller's axes, or those of a new picture."""
    if axes is None:
        figure = new_picture(size, default)
        axes = figure.subplots()
    elif size is not None:
        raise ValueError(
            "size and axes: expected one of them, got both; the figure of given axes has a size already"
        )
    plain(axes)
    return axes.figure, axes


def plain(axes: Axes) -> None:
    """Leave only the axes that carry numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TICK)


def say(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title, on the left, and labels of the axes."""
    if title:
        axes.set_title(title, fontsize=TITLE, loc="left")
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
