"""``predict``: predictions of the rows of a data set of Ray Data, in a folder of Parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.graph_columns import check_interval, frame_of_outputs
from bll_pyro.distributed.on_ray.left_out import rows_left_out
from bll_pyro.distributed.on_ray.passing import full_path, pass_rows
from bll_pyro.distributed.on_ray.report import RowsReport
from bll_pyro.distributed.on_ray.work import Work
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.fitting.loading import load
from bll_pyro.fitting.result import Fit
from bll_pyro.fitting.scoring import DONE, ROW_ID, begin_predictions
from bll_pyro.observation import call, unobserved
from bll_pyro.ray_environment import connected
from bll_pyro.runtime import Predictor
from bll_pyro.runtime import load as load_graph
from bll_pyro.shards.ids import NUMBERS, TEXTS, Ids, first_ids, plain_id
from bll_pyro.shards.parts import RECORD, WrittenPart, record_part, written_parts
from bll_pyro.shards.place import Place, place_of
from bll_pyro.shards.shard import file_hash

if TYPE_CHECKING:
    import pandas as pd

SUFFIX, GRAPH = ".parquet", ".onnx"


@call("predict")
def predict(
    fit: Fit | str | Path,
    rows: Any,
    path: str | Path,
    *,
    inputs: str | Sequence[str] = "inputs",
    row_id: str = "row_id",
    transform: Callable[[Any], Any] | None = None,
    interval: float | None = 0.9,
    workers: Workers | None = None,
) -> RowsReport:
    """Predict all rows of a data set on Ray, each once, and write a folder of Parquet files.

    Columns are ``row_id`` and those of :meth:`bll_pyro.prediction.base.Prediction.to_frame`: the prediction with its uncertainties
    and, with a detector, the verdict. The same call goes on where an earlier one was stopped.

    Parameters
    ----------
    fit
        A fit; or the path of a graph (``.onnx``), or of a saved fit, whose graph is taken where it holds one.
    rows, inputs, row_id, transform, workers
        As in :func:`extract`. A transform for a graph returns an array.
    path
        Folder or URL of the predictions, that all machines see: new, or of a call that was stopped.
    interval
        Probability of the intervals of numbers; None leaves them out. A graph must have these quantiles.

    Raises
    ------
    ValueError
        As in :func:`extract`, and if the graph lacks the quantiles of the interval.
    OSError
        If the folder cannot be written, as on a full disk.
    ModuleNotFoundError
        Without Ray.
    """
    workers = Workers() if workers is None else workers
    columns = RowColumns.of(inputs, row_id=row_id, transform=transform)
    model = fit if isinstance(fit, Fit) else opened_model(fit)
    is_graph, place = isinstance(model, Predictor), place_of(path)
    key = model.metadata["fingerprint"] if isinstance(model, Predictor) else model.fingerprint
    if isinstance(model, Predictor):
        check_interval(model, interval)
    own = {"fit": key, "graph": is_graph, "interval": interval, "columns": columns.fingerprint}
    kept = model if isinstance(fit, Fit) or isinstance(model, Fit) else full_path(fit)
    assert not isinstance(kept, Predictor)
    work = Scoring(place, key, kept, interval, workers.device)
    if place.size(DONE) is not None:
        begin_predictions(place, own)
        return _finished(place, workers)
    with connected("distributed.predict") as data:
        begin_predictions(place, own)
        report = pass_rows(data, rows, columns, work, workers)
    names = sorted(record.file for record in written_parts(place).values())
    place.write(DONE, json.dumps({"num_rows": report.num_rows, "parts": names}).encode())
    _finished(place, workers)
    return report


@dataclass
class Scoring(Work):
    """Predictions of batches, written as Parquet files."""

    place: Place
    key: str
    model: Fit | str
    interval: float | None
    device: str

    def open(self) -> None:
        self.graph = load_graph(self.model, threads=1) if isinstance(self.model, str) else None
        if isinstance(self.model, Fit) and self.model.backbone is not None:
            self.model.backbone.to(self.device)

    def compute(self, inputs: Any, ids: Sequence[int | str]) -> pd.DataFrame:
        refuse_nonfinite_inputs(inputs, ids)
        if isinstance(self.model, Fit):
            with unobserved():
                prediction = self.model.predict(inputs, batch_size=max(len(ids), 1))
            return prediction.to_pandas(self.interval).reset_index(drop=True)
        assert self.graph is not None
        return frame_of_outputs(self.graph, self.graph.predict(np.asarray(inputs)), self.interval)

    def write(self, part: str, ids: Ids, results: Sequence[pd.DataFrame], targets: Tensor | None) -> None:
        import pandas as pd
        import pyarrow as pa
        from pyarrow import parquet

        frame, array = pd.concat(list(results), ignore_index=True), np.asarray(ids)
        frame.insert(0, ROW_ID, array)
        file = part + SUFFIX
        self.place.remove(part + RECORD)
        with self.place.writing(file) as path:
            parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
        size, first, last = self.place.size(file) or 0, plain_id(array[0]), plain_id(array[-1])
        consecutive = array.dtype != object and int(array[-1] - array[0]) == len(array) - 1
        form = {"row_ids": TEXTS if array.dtype == object else NUMBERS}
        made = WrittenPart(
            file, len(array), size, file_hash(self.place, file), "0", first, last, consecutive, form, self.key
        )
        record_part(self.place, part, made)

    def read_ids(self, part: WrittenPart) -> Ids:
        import pyarrow as pa
        from pyarrow import parquet

        content = pa.BufferReader(self.place.read(part.file))
        values = parquet.read_table(content, columns=[ROW_ID])[ROW_ID].to_numpy()
        return values.astype(object) if values.dtype.kind in "UO" else torch.from_numpy(np.array(values))


def opened_model(path: str | Path) -> Fit | Predictor:
    """The graph of a model where it has one, else the fit."""
    if Path(path).suffix == GRAPH:
        return load_graph(path)
    try:
        return load_graph(path)
    except (ValueError, ImportError):  # no graph in it, or no onnxruntime; what is damaged is found again
        return load(path)


def refuse_nonfinite_inputs(inputs: Any, ids: Sequence[int | str]) -> None:
    """ValueError if an input is NaN or infinite, with the ids of the rows."""
    if not isinstance(inputs, (Tensor, np.ndarray)):
        return
    wrong = (~torch.isfinite(torch.as_tensor(inputs))).reshape(len(ids), -1).any(1).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"rows: expected finite inputs, got {len(wrong)} rows with NaN or infinite ones, with the ids "
            f"{first_ids([ids[k] for k in wrong])}; leave these rows out, or mend them"
        )


def _finished(place: Place, workers: Workers) -> RowsReport:
    """The report of predictions that are all there; the records of their parts go, since one file names all of them."""
    for part in written_parts(place):
        place.remove(part + RECORD)
    num_rows = json.loads(place.read(DONE))["num_rows"]
    return RowsReport(str(place), num_rows, 0, num_rows, tuple(rows_left_out(place, workers.retries)))
