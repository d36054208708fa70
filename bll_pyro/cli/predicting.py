"""Predictions of rows as they come, into a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.cli.data.base import DataSource
from bll_pyro.cli.row_files import row_file
from bll_pyro.cli.saved import RowIds, SavedModel
from bll_pyro.features.random_fourier import RandomFourierBackbone
from bll_pyro.fitting import Fit
from bll_pyro.observation import stage, unobserved
from bll_pyro.ood import Drift
from bll_pyro.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd

BLOCK_NUMBERS = 2**22  # features and outputs of the rows that are predicted and written at a time
MOST_ROWS = 2**15
ROW_ID = "row_id"
DRIFT_NUMBERS = ("alpha", "alarm", "alarm_row", "log_value", "threshold")


@dataclass
class Written:
    """What was written.

    Parameters
    ----------
    path
        The file.
    rows
        Number of rows.
    alarms
        Number of rows that the detector takes for unknown; None without a detector.
    columns
        Names of the columns.
    unknown_categories
        Rows with a category that is not known, by column.
    drift
        Whether rows became stranger in the course of the data; None without a detector.
    """

    path: str
    rows: int = 0
    alarms: int | None = None
    columns: tuple[str, ...] = ()
    unknown_categories: dict[str, int] | None = None
    drift: Drift | None = None

    def told(self) -> str:
        """In words."""
        alarms = "" if self.alarms is None else f", {self.alarms:,} of them unlike the known rows"
        lines = [f"{self.path}: {self.rows:,} rows{alarms}", f"columns: {', '.join(self.columns)}"]
        if self.drift is not None:
            lines.append(told_drift(self.drift))
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        own = asdict(replace(self, drift=None))
        if self.drift is not None:
            own["drift"] = {name: getattr(self.drift, name) for name in DRIFT_NUMBERS}
        return own


def told_drift(drift: Drift) -> str:
    """In words."""
    if drift.alarm:
        return (
            f"drift: up to row {drift.alarm_row:,} more rows are strange than chance explains (alpha {drift.alpha:g}); "
            "they are another kind of data, or in another order than chance"
        )
    return f"drift: no sign of it in {drift.rows:,} rows (alpha {drift.alpha:g})"


def predict_rows(
    saved: SavedModel,
    source: DataSource,
    out: Path,
    *,
    overwrite: bool = False,
    batch_size: int = 256,
    interval: float | None = None,
    drift: Drift | None = None,
) -> Written:
    """Predict all rows of some data and write them; memory does not grow with their number.

    ``drift`` watches them, in their order, where the model has a detector.
    """
    summary = Written(str(out), drift=None if saved.fit.detector is None else drift)
    num_rows, blocks = saved.stream(source, block_rows(saved.fit, batch_size))
    with row_file(out, overwrite) as write, stage("predict", num_rows, rows_per_step=1) as done:
        for row_ids, inputs in blocks:
            with unobserved():
                prediction = saved.fit.predict(inputs, batch_size=batch_size)
            frame = frame_of(prediction, row_ids, interval)
            write(frame)
            summary.rows += len(frame)
            if prediction.ood is not None:
                summary.alarms = (summary.alarms or 0) + int(prediction.ood.is_ood.sum())
                if drift is not None:
                    drift.update(prediction.ood)
            summary.columns = tuple(frame.columns)
            done.advance(len(frame))
    summary.unknown_categories = dict(saved.unknown) or None
    return summary


def block_rows(fit: Fit, batch_size: int) -> int:
    """How many rows to take at a time: a batch of a backbone, which takes longest, else what memory hardly notices."""
    if fit.backbone is not None and not isinstance(fit.backbone, RandomFourierBackbone):
        return batch_size
    width = fit.posterior.frame.num_features + fit.posterior.num_outputs
    return min(max(BLOCK_NUMBERS // width, 1), MOST_ROWS)


def frame_of(prediction: Prediction, row_ids: RowIds, interval: float | None) -> pd.DataFrame:
    """One line for each row: its name, the prediction, and the verdict of the detector."""
    frame = prediction.to_pandas(interval).reset_index(drop=True)
    frame.insert(0, ROW_ID, row_names(row_ids))
    return frame


def row_names(row_ids: RowIds) -> np.ndarray:
    """Names of rows as an array."""
    return np.arange(row_ids.start, row_ids.stop) if isinstance(row_ids, range) else np.asarray(row_ids)
