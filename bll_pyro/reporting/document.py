"""``Report``: a page and its numbers, and how both are written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bll_pyro.files import scratch_folder, user_path
from bll_pyro.summary import Summary

FORMAT = 1  # of the numbers; goes up when a name changes its meaning or goes


@dataclass(frozen=True, eq=False)
class Report(Summary):
    """A report of a fit.

    Parameters
    ----------
    numbers
        Everything that the page shows, as plain data: ``metrics`` are single numbers by name, the same names in every report, and
        ``sections`` the rest.
    html
        The page, complete in itself.
    """

    numbers: dict[str, Any]
    html: str = field(repr=False)

    @property
    def metrics(self) -> dict[str, float | None]:
        """Single numbers by name; None for one that is not finite."""
        found: dict[str, float | None] = self.numbers["metrics"]
        return found

    @property
    def json(self) -> str:
        """The numbers as JSON."""
        return json.dumps(self.numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def lines(self) -> dict[str, str]:
        """Findings, and the size of the page."""
        said = {f"{place}": one["words"] for place, one in enumerate(self.numbers["summary"], 1)}
        return said | {"page": f"{len(self.html.encode()) / 1e6:.2f} MB"}

    def save(self, path: str | Path) -> Path:
        """Write the page, and its numbers beside it (``report.html`` and ``report.json``); both replace what is there.

        Returns
        -------
        Path
            Where the page is.

        Raises
        ------
        ValueError
            If ``path`` is a folder, or the folder in which it should be is missing.
        OSError
            If the disk is full or the folder cannot be written; an earlier report stays as it was.
        """
        target = checked_path(path)
        with scratch_folder(target.parent) as folder:
            contents = {target: self.html, target.with_suffix(".json"): self.json}
            for place, text in contents.items():
                (folder / place.name).write_text(text, encoding="utf-8")
            for place in contents:
                (folder / place.name).replace(place)
        return target


def checked_path(path: str | Path) -> Path:
    """Where a page can be written; ValueError if it cannot."""
    target = user_path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"report(path=...): expected a name that ends in .html, got {str(path)!r}; the numbers are written "
            f"beside it as .json"
        )
    if target.is_dir():
        raise ValueError(f"report(path=...): expected a file, got the folder {target}; name a file in it")
    if not target.parent.is_dir():
        raise ValueError(
            f"report(path=...): expected a folder that is there, got {target.parent}; make it first"
        )
    return target


def as_json(value: Any) -> Any:
    """Numbers as JSON has them: None for NaN and infinity, to seven digits, which are those of a float32."""
    if isinstance(value, dict):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
