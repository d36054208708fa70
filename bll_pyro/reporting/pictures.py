"""What the pictures of a report share: a size that is readable on a phone, and no title, which the page has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (4.8, 3.7)  # inches; letters of 9 points are still readable where this is as wide as a phone


def untitled(figure: Figure) -> Figure:
    """The figure without the titles of its axes."""
    for axes in figure.axes:
        axes.set_title("", loc="left")
    return figure
