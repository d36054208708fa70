"""A run that was checked, and where it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bll_pyro.cli.data.base import Opened, Rows
from bll_pyro.cli.data.record import DataRecord
from bll_pyro.cli.experiment import Draft, Experiment


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes: what does not belong to the experiment.

    Parameters
    ----------
    device, batch_size
        As in :func:`bll_pyro.fit`.
    store
        Folder for features that several runs share.
    """

    device: str | None = None
    batch_size: int = 256
    store: Path | None = None


@dataclass(frozen=True)
class Job:
    """A run that was checked: draft, experiment, and the rows that it is of.

    Parameters
    ----------
    draft
        As it was read.
    experiment
        Complete.
    opened, parts
        The rows, and their numbers by part.
    record
        How they were read.
    """

    draft: Draft
    experiment: Experiment
    opened: Opened
    parts: Mapping[str, Rows]
    record: DataRecord

    @classmethod
    def of(cls, draft: Draft, opened: Opened) -> Job:
        """The job of a draft on open data."""
        experiment = draft.experiment(opened)
        parts = experiment.splits.of(opened, experiment.seed)
        record = DataRecord.of(experiment.data, opened, parts["train"])
        return cls(draft, experiment, opened, parts, record)

    def rows(self, part: str) -> Rows | None:
        """Row numbers of a part; None if it has none."""
        rows = self.parts.get(part)
        return rows if rows is not None and len(rows) else None

    def data(self, part: str) -> Any:
        """Inputs and targets of a part; None if it has none."""
        rows = self.rows(part)
        return None if rows is None else self.opened.take(rows)
