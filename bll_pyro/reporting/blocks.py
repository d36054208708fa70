"""What a report is made of: sections of texts, facts, tables and pictures, all plain data.

A section is made from numbers and knows nothing of HTML; the templates in ``templates/`` know how each block looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bll_pyro.diagnostics import Grade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 60  # of a table; the rest is cut, and a note says so
MOST_LETTERS = 60  # of a name in a table or picture
LONG = 45  # letters from which a cell needs a wide column
NO_VALUE = "–"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    words: str


@dataclass(frozen=True)
class Facts:
    """Names with what is known of each, as a list of definitions."""

    kind: ClassVar[str] = "facts"
    items: Mapping[str, str]


@dataclass(frozen=True)
class Listing:
    """A text in fixed letters, folded away under a title."""

    kind: ClassVar[str] = "source"
    title: str
    words: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Parameters
    ----------
    text
        What is shown.
    key
        What the column is sorted by: a number, or None for the text itself. NaN comes last.
    grade
        The verdict that the cell is; empty for other cells.
    image
        PNG as a data address; the text is then its description.
    remark
        What is said of it in smaller letters.
    """

    text: str
    key: float | None = None
    grade: str = ""
    image: str = ""
    remark: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the cell is aligned as a number."""
        return self.key is not None and not self.grade

    @property
    def is_long(self) -> bool:
        """Whether the text needs a wide column."""
        return len(self.text) > LONG


@dataclass(frozen=True)
class SortableTable:
    """A table that can be sorted.

    Parameters
    ----------
    caption
        What it shows, one sentence.
    columns
        Headings, with what each means; an empty meaning explains itself.
    rows
        Cells, one for each column.
    note
        What is left out or to be kept in mind.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone."""
        if not self.rows:
            return [False] * len(self.columns)
        return [
            any(c.is_number for c in column) and all(c.is_number for c in column)
            for column in zip(*self.rows)
        ]


@dataclass(frozen=True)
class Chart:
    """A picture.

    Parameters
    ----------
    title
        What it is.
    draw
        Makes the figure.
    reading
        One sentence on how to read it.
    seen
        The alternative text: what is seen in it.
    """

    kind: ClassVar[str] = "picture"
    title: str
    draw: Callable[[], Figure]
    reading: str
    seen: str


Content = Text | Facts | Listing | SortableTable | Chart


@dataclass(frozen=True)
class Finding:
    """A line of the summary: a verdict in words, with its grade."""

    words: str
    grade: Grade | None = None

    @property
    def place(self) -> int:
        """Where it stands in the summary: verdicts first, the worst of them at the top."""
        return (Grade.WRONG, Grade.LOOK, Grade.OK, Grade.NOT_CHECKED, None).index(self.grade)


@dataclass(frozen=True)
class Tile:
    """A number of the summary: its name, the number, its standard error, and what it means."""

    name: str
    text: str
    error: str
    meaning: str


@dataclass
class Section:
    """One section.

    Parameters
    ----------
    title, anchor
        Heading, and the end of its address in the page.
    lead
        What the section answers, one or two sentences.
    blocks
        Its content.
    findings, tiles
        What it adds to the summary.
    metrics
        Numbers by name, for ``bll check``; names are the same in every report.
    details
        Everything else that is shown, as plain data.
    """

    title: str
    anchor: str
    lead: str
    blocks: list[Content] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def number(value: float | None, digits: int = 3, *, error: float | None = None, unit: str = "") -> Cell:
    """A cell of a number with a fixed count of decimals, and its standard error."""
    if value is None or math.isnan(value):
        return Cell(NO_VALUE, math.nan)
    text = f"{value:,.{digits}f}" if math.isfinite(value) else f"{value}".replace("inf", "∞")
    if error is not None and math.isfinite(error):
        text += f" ± {error:.{digits}f}"
    return Cell((text + unit).replace("-", "−"), float(value))


def significant(value: float | None, digits: int = 4) -> Cell:
    """A cell of a number of unknown size."""
    if value is None or math.isnan(value):
        return Cell(NO_VALUE, math.nan)
    return Cell(f"{value:.{digits}g}".replace("-", "−"), float(value))


def aligned(values: Iterable[float], digits: int = 4) -> list[Cell]:
    """Cells of one column, all with as many decimals as give the largest of them so many digits."""
    numbers = [float(value) for value in values]
    largest = max((abs(value) for value in numbers if math.isfinite(value)), default=0.0)
    if largest and not 1e-6 < largest < 1e9:
        return [significant(value, digits) for value in numbers]
    if all(value.is_integer() for value in numbers if math.isfinite(value)):
        return [number(value, 0) for value in numbers]
    decimals = digits - 1 - math.floor(math.log10(largest))
    return [number(value, max(0, decimals)) for value in numbers]


def with_errors(pairs: Iterable[tuple[float | None, float | None]]) -> list[Cell]:
    """Cells of scores with their standard errors, all with as many decimals as give the largest error two digits."""
    given = list(pairs)
    largest = max((error for _, error in given if error is not None and math.isfinite(error)), default=0.0)
    if largest <= 0:
        return [significant(value) for value, _ in given]
    decimals = min(6, max(0, 1 - math.floor(math.log10(largest))))
    return [number(value, decimals, error=error) for value, error in given]


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f} %"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def whole(value: int) -> Cell:
    """A cell of a count."""
    return Cell(f"{value:,}", float(value))


def graded(grade: Grade) -> Cell:
    """A cell of a verdict; the worst sorts first."""
    order = {Grade.WRONG: 0.0, Grade.LOOK: 1.0, Grade.OK: 2.0, Grade.NOT_CHECKED: 3.0}
    return Cell(str(grade), order[grade], str(grade).replace(" ", "-"))


def short_name(name: Any, most: int = MOST_LETTERS) -> str:
    """A name within a table or picture: its line breaks are spaces, and a long one is cut in the middle."""
    text = " ".join(str(name).split()) or "(empty)"
    if len(text) <= most:
        return text
    kept = (most - 1) // 2
    return f"{text[:kept]}…{text[-kept:]}"


def first_rows(
    rows: Sequence[Sequence[Cell]], what: str, most: int = MOST_ROWS
) -> tuple[Sequence[Sequence[Cell]], str]:
    """As many rows as a table may have, and a note on those that were cut."""
    if len(rows) <= most:
        return rows, ""
    return rows[:most], f"{most} of {len(rows):,} {what} are shown; report.json has all."
