"""The stored results: one JSON line for each data set, size, seed, method and shift.

A line says which split it comes from. One without the hash of its split is refused, and one whose split is no longer
what the data set makes is measured anew. Later lines stand for earlier ones of the same key.
"""

import json
from pathlib import Path
from typing import Any

KEY = ("set", "size", "seed", "method", "shift")
NEEDED = (*KEY, "split", "made_with", "nll")

Key = tuple[str, int, int, str, str]
Row = dict[str, Any]


class Store:
    """The lines of a file by their key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        if path.exists():
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                row = checked(json.loads(line), f"{path.name}, line {number}")
                self.rows[key_of(row)] = row

    def add(self, row: Row) -> None:
        """Append a line."""
        row = checked(row, "new row")
        self.rows[key_of(row)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line_of(row))

    def has(self, key: Key, split: str, made_with: str | None = None) -> bool:
        """Whether there is a row of this split, and, where it matters, of this version of the method."""
        row = self.rows.get(key)
        return row is not None and row["split"] == split and made_with in (None, row["made_with"])

    def tidy(self) -> None:
        """Write the file anew, sorted, without superseded lines."""
        if self.rows:
            self.path.write_text("".join(line_of(self.rows[key]) for key in sorted(self.rows)))


def checked(row: Row, where: str) -> Row:
    """The row; ValueError if something is missing that says what it is."""
    missing = [name for name in NEEDED if row.get(name) in (None, "")]
    if missing:
        raise ValueError(
            f"{where}: expected a result with {', '.join(NEEDED)}, got none of {', '.join(missing)}; "
            "delete the line, and the benchmark measures it anew."
        )
    return row


def key_of(row: Row) -> Key:
    """What a row is the result of."""
    return row["set"], row["size"], row["seed"], row["method"], row["shift"]


def line_of(row: Row) -> str:
    """A line, numbers with five significant digits."""
    short = {
        name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()
    }
    return json.dumps(short, separators=(",", ":")) + "\n"
