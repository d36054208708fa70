"""A detector for a saved model, and its verdicts on rows as they come."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bll_pyro.cli.data.base import DataSource
from bll_pyro.cli.predicting import ROW_ID, block_rows, row_names
from bll_pyro.cli.row_files import row_file
from bll_pyro.cli.saved import SavedModel
from bll_pyro.cli.usage import UsageError
from bll_pyro.observation import stage, unobserved
from bll_pyro.ood import Detector

NUM_STRANGEST = 10  # rows that are row_names


@dataclass
class Verdicts:
    """What was found.

    Parameters
    ----------
    alpha, score, threshold
        Of the detector: allowed rate of false alarms, what is scored, and the score above which a row is unknown.
    rows, alarms
        Number of rows, and of those that are unknown.
    strangest
        The rows with the highest scores, highest first: name, p-value, score, and whether they are unknown.
    path
        The file with all verdicts, if one was written.
    """

    alpha: float
    score: str
    threshold: float
    rows: int = 0
    alarms: int = 0
    strangest: list[dict[str, Any]] = field(default_factory=list)
    path: str | None = None

    @property
    def rate(self) -> float:
        """Share of the rows that are unknown."""
        return self.alarms / self.rows

    def told(self) -> str:
        """In words."""
        lines = [
            f"{self.alarms:,} of {self.rows:,} rows ({self.rate:.2%}) are unlike the known rows; of rows like these at most "
            f"{self.alpha:.4g} would be, on average",
            f"score: {self.score}",
            "",
            f"{'p-value':>8}  {'score':>10}  strangest rows",
        ]
        lines += [f"{one['p_value']:>8.4f}  {one['score']:>10.4g}  {one[ROW_ID]}" for one in self.strangest]
        return "\n".join(lines + ([] if self.path is None else ["", f"{self.path}: all verdicts"]))

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"rate": self.rate}


def calibrated(
    saved: SavedModel,
    alpha: float,
    known: str,
    train: str | None,
    overrides: Mapping[str, str],
    batch_size: int,
) -> Detector:
    """The detector of the model's experiment, or the default one, calibrated on known rows.

    Raises
    ------
    UsageError
        If ``alpha`` is no rate, or there are too few rows for it.
    """
    declared = None if saved.experiment is None else saved.experiment.detector
    try:
        detector = replace(declared or Detector(), alpha=alpha)
    except ValueError as error:
        raise UsageError(f"--alpha: {error}") from error
    opened, rows = saved.rows(known, overrides, need_targets=False)
    learned_from = None
    if train is not None or saved.record is not None:
        others, numbers = saved.rows(train or "run:train", overrides)
        learned_from = others.take(numbers)
    try:
        return detector.calibrate(
            saved.fit, opened.inputs_of(rows), train=learned_from, batch_size=batch_size
        )
    except ValueError as error:
        raise UsageError(f"{known}: {error}") from error


def judge_rows(
    saved: SavedModel,
    detector: Detector,
    source: DataSource,
    out: Path | None,
    overwrite: bool,
    batch_size: int,
) -> Verdicts:
    """The verdict on all rows of some data; memory does not grow with their number."""
    import pandas as pd

    found = Verdicts(
        detector.alpha, repr(detector.score), detector.threshold, path=None if out is None else str(out)
    )
    num_rows, blocks = saved.stream(source, block_rows(saved.fit, batch_size))
    file = nullcontext(lambda frame: None) if out is None else row_file(out, overwrite)
    with file as write, stage("ood", num_rows, rows_per_step=1) as done:
        for row_ids, inputs in blocks:
            with unobserved():
                verdict = detector.detect(inputs, batch_size=batch_size)
            columns = {
                name: getattr(verdict, name).numpy(force=True) for name in ("is_ood", "p_value", "score")
            }
            frame = pd.DataFrame({ROW_ID: row_names(row_ids), **columns})
            write(frame)
            found.rows += len(frame)
            found.alarms += int(frame["is_ood"].sum())
            top = frame.nlargest(NUM_STRANGEST, "score").to_dict("records")
            found.strangest = heapq.nlargest(
                NUM_STRANGEST, [*found.strangest, *top], key=lambda one: one["score"]
            )
            done.advance(len(frame))
    return found
