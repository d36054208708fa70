"""A line of advice and what was measured of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Table, Target


@dataclass(frozen=True)
class Finding:
    """Advice, the promise in it as a target, and the figure that judges it.

    Attributes
    ----------
    topic, advice : str
        Section of the page, and the advice in one line.
    target : Target
        What the advice promises. Missed: the advice is wrong.
    table : Table or None
        The figures; None where an earlier line has them.
    picture : str
        Name of the picture, without folder and ending.
    draw : callable or None
        Draws the picture into a file.
    """

    topic: str
    advice: str
    target: Target
    table: Table | None = None
    picture: str = ""
    draw: Callable[[Path], None] | None = None
