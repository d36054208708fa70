"""The report of a comparison: the page of the best fit, with all of them beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bll_pyro as bll
from bll_pyro.cli.figures import LOO_ROWS
from bll_pyro.cli.job import Job
from bll_pyro.cli.reported import rows_of_report
from bll_pyro.cli.saved import load_model
from bll_pyro.cli.usage import UsageError

PAGE = "report.html"


def check_same_rows(jobs: Mapping[str, Job]) -> None:
    """Raise a UsageError if the fits will not be of the same rows, so that they cannot be ranked on one page."""
    made = {(job.experiment.data, job.experiment.splits, job.experiment.seed) for job in jobs.values()}
    if len(made) > 1:
        raise UsageError(
            "--report: expected fits of the same rows, got other data, splits or seeds; leave --report out"
        )
    if any(job.rows("test") is None for job in jobs.values()):
        raise UsageError("--report: expected test rows, got none; give --splits.test 0.2")


def write_report(folders: Mapping[str, Path], path: Path, title: str) -> None:
    """Rank the fits by leave-one-out, and write the page of the best one with the table of all."""
    saved = {name: load_model(folder) for name, folder in folders.items()}
    comparison = None
    if len(saved) > 1:
        opened, rows = next(iter(saved.values())).rows("run:train", {})
        fits = {name: one.fit for name, one in saved.items()}
        comparison = bll.compare(fits, opened.take(rows), num_rows=min(len(rows), LOO_ROWS))
    best = next(iter(saved)) if comparison is None else comparison.best
    given: dict[str, Any] = rows_of_report(saved[best], "run:test", None, None, None, {}, False)
    bll.report(saved[best].fit, path=path, title=f"{title}: {best}", comparison=comparison, **given)
