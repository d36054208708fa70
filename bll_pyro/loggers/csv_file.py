"""``CSV``: a file with one line for each step, which grows while the run goes on."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import TextIO

from bll_pyro.files import user_path
from bll_pyro.observation.records import Record, Run

FIRST = ["run", "stage", "step", "total", "seconds"]


class CSV:
    """Writes steps into a CSV file, for a table or a spreadsheet.

    Columns: ``run``, the number of the call in this file, from 1; ``stage``, ``step``, ``total`` and ``seconds`` of the
    :class:`bll_pyro.Record`; and one for each metric, empty in steps that do not have it. A metric that is new gets a column
    at the end. Every line is on disk at once, and nothing is ever overwritten: a file that is there is continued.

    Parameters
    ----------
    path
        The file. Its folder is made if there is none.

    Raises
    ------
    ValueError
        If there is a file that this class has not written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self._lock = threading.Lock()
        self._columns = list(FIRST)
        self._number, self._numbers = 0, dict[Run, int]()
        self._file: TextIO | None = None
        if self.path.exists():
            self._columns, self._number = self._found()

    def on_start(self, run: Run) -> None:
        """Give the run its number."""
        with self._lock:
            if not self._numbers:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                is_new = not self.path.exists() or self.path.stat().st_size == 0
                self._file = self._opened()
                if is_new:
                    self._write(self._columns)
            self._number += 1
            self._numbers[run] = self._number

    def on_step(self, record: Record) -> None:
        """Write one line."""
        with self._lock:
            new = [name for name in record.metrics if name not in self._columns]
            if new:
                self._widen(new)
            total = "" if record.total is None else record.total
            about = [self._numbers[record.run], record.stage, record.step, total, f"{record.seconds:.3f}"]
            metrics = [record.metrics.get(name, "") for name in self._columns[len(FIRST) :]]
            self._write([*about, *metrics])

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Close the file after the last of the runs that go on."""
        with self._lock:
            del self._numbers[run]
            if not self._numbers and self._file is not None:
                self._file.close()
                self._file = None

    def _opened(self) -> TextIO:
        return self.path.open("a", newline="", encoding="utf-8", buffering=1)

    def _write(self, cells: list[object] | list[str]) -> None:
        csv.writer(self._file, lineterminator="\n").writerow(cells)  # type: ignore[arg-type]

    def _found(self) -> tuple[list[str], int]:
        """Columns of the file that is there, and the number of its last run."""
        with self.path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            columns = next(lines, list(FIRST))
            if columns[: len(FIRST)] != FIRST:
                raise ValueError(
                    f"bll.loggers.CSV: expected a new file or one of this logger, got {self.path}, which begins with "
                    f"{','.join(columns)[:60]!r}; choose another path"
                )
            return columns, max((int(line[0]) for line in lines if line), default=0)

    def _widen(self, names: list[str]) -> None:
        """Give the file more columns: it is written anew beside itself, and takes its own place when it is complete."""
        assert self._file is not None
        self._file.close()
        self._columns += names
        beside = self.path.with_name(f".{self.path.name}.wider")
        with (
            self.path.open(newline="", encoding="utf-8") as old,
            beside.open("w", newline="", encoding="utf-8") as new,
        ):
            writer = csv.writer(new, lineterminator="\n")
            next(csv.reader(old))
            writer.writerow(self._columns)
            writer.writerows([*line, *[""] * len(names)] for line in csv.reader(old))
        beside.replace(self.path)
        self._file = self._opened()
