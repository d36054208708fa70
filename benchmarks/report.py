"""The report of a benchmark: tables and targets, written as JSON (complete) and Markdown (for readers)."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import as_line
from benchmarks.harness import Spread


@dataclass(frozen=True)
class Target:
    """One limit, set before the measurement, and the measured value. ``sense`` is "<=" or ">="."""

    what: str
    found: float | None
    limit: float
    sense: str = "<="

    @property
    def met(self) -> bool | None:
        """Whether the limit holds; None if nothing was measured."""
        if self.found is None:
            return None
        return self.found <= self.limit if self.sense == "<=" else self.found >= self.limit


@dataclass
class Table:
    """A table; ``columns`` maps keys of the rows to headings. Other keys are written to the JSON file only."""

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        """Give the table in Markdown."""
        lines = [
            "| " + " | ".join(self.columns.values()) + " |",
            "| " + " | ".join("---" for _ in self.columns) + " |",
        ]
        lines += ["| " + " | ".join(show(row.get(key)) for key in self.columns) + " |" for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines])


@dataclass
class Report:
    """The results of one benchmark."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def markdown(self, environment: dict[str, Any]) -> str:
        """Give the whole report in Markdown."""
        parts = [f"## {self.title}", as_line(environment), *(table.markdown() for table in self.tables)]
        if self.targets:
            verdict = {True: "met", False: "missed", None: "not measured"}
            rows = [
                {
                    "what": t.what,
                    "found": t.found,
                    "limit": f"{t.sense} {show(t.limit)}",
                    "met": verdict[t.met],
                }
                for t in self.targets
            ]
            columns = {"what": "target", "found": "found", "limit": "limit", "met": ""}
            parts.append(Table("Targets", columns, rows).markdown())
        parts += [f"![{Path(picture).stem}]({picture})" for picture in self.pictures]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, environment: dict[str, Any], options: dict[str, Any]) -> list[Path]:
        """Write NAME.json and NAME.md."""
        folder.mkdir(parents=True, exist_ok=True)
        everything = {
            "benchmark": self.name,
            "title": self.title,
            "environment": environment,
            "options": options,
            "tables": [{"title": t.title, "rows": t.rows} for t in self.tables],
            "targets": [vars(t) | {"met": t.met} for t in self.targets],
            "notes": self.notes,
        }
        data, text = folder / f"{self.name}.json", folder / f"{self.name}.md"
        data.write_text(json.dumps(everything, indent=1, default=_plain) + "\n")
        text.write_text(self.markdown(environment))
        return [data, text]


def show(value: Any) -> str:
    """The text of a cell: numbers with three to four significant digits, a dash for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return vars(value)
    raise TypeError(f"cannot write {type(value).__name__} to JSON")
