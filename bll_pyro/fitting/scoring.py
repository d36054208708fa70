"""Predictions of a store of features, written part by part as the rows come: memory does not grow with their number.

The result is a folder of Parquet files with one line a row. A part is whole or not there, and one that is there is not computed
again: the same call goes on where an earlier one was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.checks import count
from bll_pyro.features.store import Features
from bll_pyro.observation import stage, unobserved
from bll_pyro.shards.place import Place, place_of

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

BLOCK_NUMBERS = 2**22  # features and outputs of rows that are predicted at a time
ROWS_PER_PART = 2**20
# what the folder is of; written last: all parts are there. Readers of a folder of Parquet files pass over names like these
BEGUN, DONE = "_begun.json", "_predictions.json"
ROW_ID = "row_id"


def predict_store(
    fit: Fit,
    features: Features,
    path: str | Path,
    *,
    interval: float | None = 0.9,
    columns: Sequence[str] | None = None,
    rows_per_part: int = ROWS_PER_PART,
    **options: Any,
) -> list[str]:
    """Predict all rows of a store, and write them to a folder of Parquet files; return the names of these, in order.

    Columns are ``row_id`` and those of :meth:`Prediction.to_pandas`: the prediction with its uncertainty and, with a detector, its
    verdict. All of a folder can be read at once by pyarrow, pandas, polars, DuckDB or Spark.

    Parameters
    ----------
    fit
        A fit whose inputs are features (``fit.head`` of one with a backbone).
    features
        The store.
    path
        A folder, or a URL that fsspec knows: new, or of a call that was stopped.
    interval
        Probability of the intervals; None leaves them out.
    columns
        Names of the columns to keep beside ``row_id``; None keeps all, with a probability of each class.
    rows_per_part
        Rows of a file.
    options
        Further arguments of :meth:`bll_pyro.Fit.predict`.

    Raises
    ------
    ValueError
        If the folder is of another fit, store or division, or holds something else.
    ModuleNotFoundError
        Without pyarrow.
    """
    count(rows_per_part, "rows_per_part", "predict_store")
    if not isinstance(features, Features) or fit.backbone is not None:
        raise ValueError(
            f"predict_store: expected a fit on features and a store of them, got {type(features).__name__} and a fit "
            f"{'with a backbone' if fit.backbone is not None else 'without'}; extract the inputs, and use fit.head"
        )
    place = place_of(path)
    kept = None if columns is None else list(columns)
    if kept is not None:  # before anything is written
        fit.predict(next(iter(features.between(0, 1).in_order(1))), **options).to_pandas(interval, kept)
    own = {
        "fit": fit.fingerprint,
        "store": features.sha256 or features.key,
        "num_rows": features.num_rows,
        "interval": interval,
        "columns": kept,
        "rows_per_part": rows_per_part,
    }
    begin_predictions(place, own)
    width = fit.posterior.frame.num_features + fit.posterior.num_outputs
    size = min(max(BLOCK_NUMBERS // width, 1), rows_per_part)
    starts = range(0, features.num_rows, rows_per_part)
    names = [f"part-{k:05d}.parquet" for k in range(len(starts))]
    with stage("predict", features.num_rows, rows_per_step=1) as done:
        for name, start in zip(names, starts, strict=True):
            part = features.between(start, min(start + rows_per_part, features.num_rows))
            if place.size(name) is not None:
                done.skip(len(part))
                continue
            with place.writing(name) as file, unobserved():
                _write(fit, part, file, interval, kept, size, options)
            done.advance(len(part))
    place.write(DONE, json.dumps({"num_rows": features.num_rows, "parts": names}).encode())
    return names


def begin_predictions(place: Place, own: dict[str, Any]) -> None:
    """Note what a folder of predictions is of, or check that it is of that; ValueError if not."""
    names = place.names()
    if BEGUN in names:
        found = json.loads(place.read(BEGUN))
        differing = [name for name in own if found.get(name) != own[name]]
        if differing:
            raise ValueError(
                f"{place}: expected predictions of this call, got some of another ({', '.join(differing)} differ); choose another "
                "folder, or delete this one"
            )
    elif names:
        raise ValueError(f"{place}: expected a new folder, got one with {names[0]}; choose another")
    else:
        place.write(BEGUN, json.dumps(own).encode())


def _write(
    fit: Fit,
    part: Features,
    file: Path,
    interval: float | None,
    columns: list[str] | None,
    size: int,
    options: dict[str, Any],
) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ModuleNotFoundError(
            "expected pyarrow, which writes Parquet, got none; pip install 'bll-pyro[tables]'"
        ) from error
    ids, start, writer = np.asarray(part.row_ids), 0, None
    try:
        for rows in part.in_order(size):
            frame = fit.predict(rows, **options).to_pandas(interval, columns).reset_index(drop=True)
            frame.insert(0, ROW_ID, ids[start : start + len(rows)])
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            start += len(rows)
    finally:
        if writer is not None:
            writer.close()
