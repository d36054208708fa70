"""The rows that a report of a saved model is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bll_pyro.cli.data.base import DataSource, Opened, Rows
from bll_pyro.cli.data.tables import Table
from bll_pyro.cli.saved import OWN, SavedModel
from bll_pyro.cli.usage import UsageError


def rows_of_report(
    saved: SavedModel,
    data: str,
    train: str | None,
    held_out: str | None,
    unknown: str | None,
    overrides: Mapping[str, str],
    skip_bad: bool,
) -> dict[str, Any]:
    """Arguments of :func:`bll_pyro.report`: rows, names of rows and classes, and the columns of tables as they are in the file."""
    if saved.record is None and OWN.fullmatch(data):
        raise UsageError(
            "expected --rows with a fit that was saved by itself; only a run knows its own test rows"
        )
    need_targets = not OWN.fullmatch(data) and _is_table_with_targets(saved.source(data, overrides))
    raw, rows = saved.raw_rows(data, overrides, skip_bad=skip_bad, need_targets=need_targets)
    opened = saved.ready(raw)
    given: dict[str, Any] = {
        "data": opened.inputs_of(rows) if opened.targets is None else opened.take(rows),
        "row_names": [opened.row_ids[row] for row in rows],
        "items": _columns(saved, raw, rows),
    }
    if saved.record is not None:
        given["class_names"] = saved.record.classes
    for name, text, own in (("train", train, "train"), ("held_out", held_out, "calibration")):
        part = text or (f"run:{own}" if len(saved.parts.get(own, ())) else None)
        if part is not None:
            other, numbers = saved.rows(part, overrides)
            given[name] = other.take(numbers)
    if unknown is not None:
        other, numbers = saved.rows(unknown, overrides, skip_bad=skip_bad, need_targets=False)
        given["unknown"] = other.inputs_of(numbers)
    return given


def _is_table_with_targets(source: DataSource) -> bool:
    """Whether data are a table that has the columns of the targets; of other data it is seen when they are open."""
    return (
        isinstance(source, Table)
        and bool(source.targets)
        and set(source.targets) <= set(source.file().columns)
    )


def _columns(saved: SavedModel, raw: Opened, rows: Rows) -> Any:
    """The columns of a table before they were made features; None for other data."""
    if saved.record is None or saved.record.encoding is None:
        return None
    return raw.inputs_of(rows)[list(saved.record.encoding.names)]
