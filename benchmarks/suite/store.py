"""The rows of the suite: one JSON line for each task, method and seed, with an id by which it can be measured again.

A row says which split it comes from, with which seed and which versions; a row without them is refused. Later lines stand
for earlier ones of the same id. The predictions lie beside it in files that git does not hold.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

NEEDED = ("id", "task", "method", "seed", "split", "versions")
Row = dict[str, Any]


def id_of(task: str, method: str, seed: int) -> str:
    """The id of a row: task, method and seed, without spaces."""
    plain = "".join(c if c.isalnum() else "-" for c in method.lower())
    return ".".join((task, "-".join(part for part in plain.split("-") if part), str(seed)))


class Rows:
    """The rows of a file by their id, and the predictions behind them.

    Parameters
    ----------
    path : Path
        The file of lines.
    predictions : Path
        The folder of predictions.
    """

    def __init__(self, path: Path, predictions: Path) -> None:
        self.path, self.predictions = path, predictions
        self.rows: dict[str, Row] = {}
        if path.exists():
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                row = checked(json.loads(line), f"{path.name}, line {number}")
                self.rows[row["id"]] = row

    def add(self, row: Row) -> None:
        """Append a row."""
        row = checked(row, "new row")
        self.rows[row["id"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line_of(row))

    def has(self, name: str, split: str, versions: str | None) -> bool:
        """Whether there is a row of this split, and, where it matters, of these versions."""
        row = self.rows.get(name)
        return row is not None and row["split"] == split and versions in (None, row["versions"])

    def tidy(self) -> None:
        """Write the file anew, sorted, without superseded lines."""
        if self.rows:
            self.path.write_text("".join(line_of(self.rows[name]) for name in sorted(self.rows)))

    def keep(self, name: str, split: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep predictions."""
        self.predictions.mkdir(parents=True, exist_ok=True)
        given: dict[str, Any] = {"split": np.array(split), **arrays}
        np.savez_compressed(self.predictions / f"{name}.npz", **given)

    def kept(self, name: str) -> dict[str, np.ndarray] | None:
        """The predictions of a row, if they are there and of its split."""
        path = self.predictions / f"{name}.npz"
        row = self.rows.get(name)
        if row is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return arrays if str(arrays.pop("split")) == row["split"] else None


def checked(row: Row, where: str) -> Row:
    """The row; ValueError if something is missing that says what it is."""
    missing = [name for name in NEEDED if row.get(name) in (None, "")]
    if missing:
        raise ValueError(
            f"{where}: expected a row with {', '.join(NEEDED)}, got none of {', '.join(missing)}; "
            "delete the line, and the suite measures it anew."
        )
    if ("nll" in row) == ("failure" in row):
        raise ValueError(f"{where}: expected measures or a failure, got {sorted(row)}; delete the line.")
    return row


def line_of(row: Row) -> str:
    """A line, numbers with five significant digits."""
    short = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
    return json.dumps(short, separators=(",", ":")) + "\n"
