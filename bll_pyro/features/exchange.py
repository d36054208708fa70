"""Stores of features from and to Arrow and Parquet, batch by batch: memory does not grow with the number of rows.

=========== ================================================================ =======================================
column      content                                                          in a store
=========== ================================================================ =======================================
row_id      whole numbers or texts                                           ``row_ids``
features    a list of D floats (``FixedSizeList``)                           ``[N, D]``
target      a number, or a list of T numbers                                 ``targets [N]`` or ``[N, T]``
=========== ================================================================ =======================================

Tables with a column for each feature are read too. Arrow has no bfloat16: such features are written as float32, which holds them
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.features.store import Features
from bll_pyro.shards.ids import Ids

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID, FEATURES, TARGET = "row_id", "features", "target"
BATCH_BYTES = 2**26  # of the features in a batch of Arrow, and in a row group of Parquet
PART_BYTES = 2**28  # of the features in a shard


def to_arrow(features: Features) -> pa.RecordBatchReader:
    """A store as a reader of Arrow's record batches, which pyarrow, polars, DuckDB and others take."""
    pa = _arrow()
    size = max(1, BATCH_BYTES // (features.num_features * features.dtype.itemsize))
    ids = features.row_ids

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for rows, targets in features.batches(size):
            part = ids[start : start + len(rows)]
            columns = [pa.array(np.asarray(part)), _column(rows)]
            columns += [] if targets is None else [_column(targets)]
            yield pa.record_batch(columns, schema=schema)
            start += len(rows)

    example = features.between(0, 1)
    fields = [(ROW_ID, pa.string() if isinstance(ids, np.ndarray) else pa.int64())]
    fields.append((FEATURES, _column(example[:]).type))
    if example.targets is not None:
        fields.append((TARGET, _column(example.targets).type))
    schema = pa.schema(fields)
    return pa.RecordBatchReader.from_batches(schema, batches())


def to_parquet(features: Features, path: str | Path) -> None:
    """Write a store as one Parquet file, which is there when it is whole."""
    from bll_pyro.shards.place import place_of

    reader = to_arrow(features)
    from pyarrow import parquet

    where = str(path).rpartition("/") if "://" in str(path) else (Path(path).parent, "/", Path(path).name)
    with (
        place_of(where[0]).writing(where[2]) as file,
        parquet.ParquetWriter(file, reader.schema) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)


def from_arrow(
    batches: Any,
    store: str | Path,
    *,
    columns: Sequence[str] | None = None,
    target: str | None = TARGET,
    row_id: str | None = ROW_ID,
    dtype: torch.dtype | None = None,
    key: str | None = None,
) -> Features:
    """Write record batches of Arrow (a table, a reader, or an iterable of batches) as a store, and open it.

    Parameters
    ----------
    batches
        Rows, in batches of any size.
    store
        Folder or URL of the new store.
    columns
        Names of the columns that are features, one number each; None takes the column ``features``, a list.
    target, row_id
        Names of the columns of targets and ids; left out where there is none of that name.
    dtype
        Floating-point type of the features; None keeps theirs, and takes float32 for whole numbers.
    key
        The key of the store.

    Raises
    ------
    ValueError
        If a column is missing or has gaps, rows have different widths, or features are not finite (the ids are named).
    """
    pa = _arrow()
    if isinstance(batches, pa.Table):
        batches = batches.to_batches()
    writer, start, number = Features.writer(store, key=key), 0, 0
    waiting: list[tuple[Tensor, Tensor | None, Any]] = []

    def write() -> None:
        nonlocal number
        rows, targets, ids = zip(*waiting, strict=True)
        joined = None if targets[0] is None else torch.cat(targets)
        writer.write(f"shard-{number:05d}", torch.cat(rows), joined, row_ids=_together(ids))
        number += 1
        waiting.clear()

    for batch in batches:
        if not batch.num_rows:
            continue
        rows = _features(batch, columns)
        rows = rows.to(dtype or (rows.dtype if rows.is_floating_point() else torch.float32))
        names = batch.schema.names
        given = _tensor(batch, target) if target is not None and target in names else None
        ids = range(start, start + len(rows))
        numbered = _numpy(batch, row_id) if row_id is not None and row_id in names else ids
        waiting.append((rows, given, numbered))
        start += len(rows)
        if sum(each.nbytes for each, _, _ in waiting) >= PART_BYTES:
            write()
    if waiting:
        write()
    return Features.commit(store, num_rows=start, feature_names=columns)


def from_parquet(paths: str | Path | Sequence[str | Path], store: str | Path, **options: Any) -> Features:
    """Write Parquet files, or a folder of them, as a store; ``options`` are those of :func:`from_arrow`."""
    _arrow()
    from pyarrow import dataset

    given = [str(path) for path in paths] if isinstance(paths, (list, tuple)) else str(paths)
    return from_arrow(dataset.dataset(given, format="parquet").to_batches(), store, **options)


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ModuleNotFoundError(
            "expected pyarrow, which reads and writes Arrow and Parquet, got none; pip install 'bll-pyro[tables]'"
        ) from error
    return pyarrow


def _column(rows: Tensor) -> pa.Array:
    """A tensor ``[n]`` or ``[n, w]`` as a column."""
    pa = _arrow()
    values = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    if values.ndim == 1:
        return pa.array(values)
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _features(batch: pa.RecordBatch, columns: Sequence[str] | None) -> Tensor:
    if columns is None:
        return _tensor(batch, FEATURES)
    return torch.stack([_tensor(batch, name) for name in columns], 1)


def _tensor(batch: pa.RecordBatch, name: str) -> Tensor:
    """A column as a tensor ``[n]``, or ``[n, w]`` of lists of one width."""
    return torch.from_numpy(_numpy(batch, name))


def _numpy(batch: pa.RecordBatch, name: str) -> Any:
    pa = _arrow()
    if name not in batch.schema.names:
        raise ValueError(
            f"expected a column {name!r}, got {', '.join(batch.schema.names)}; name the columns of the features with columns=[...]"
        )
    column = batch.column(name)
    if column.null_count:
        raise ValueError(
            f"column {name!r}: expected a value in each row, got {column.null_count} gaps; fill them or drop the rows"
        )
    if not hasattr(column.type, "value_type") or pa.types.is_dictionary(column.type):
        return np.array(column.to_numpy(zero_copy_only=False))
    values = np.array(column.flatten().to_numpy(zero_copy_only=False))
    widths = {column.type.list_size} if pa.types.is_fixed_size_list(column.type) else set()
    widths = widths or set(column.value_lengths().to_pylist())
    if len(widths) != 1:
        raise ValueError(
            f"column {name!r}: expected lists of one length, got lengths {sorted(widths)[:5]}; rows of a store have one width"
        )
    return values.reshape(len(column), -1)


def _together(parts: Sequence[Any]) -> Ids:
    """Ids of several batches."""
    if all(isinstance(ids, range) for ids in parts):
        return range(parts[0].start, parts[-1].stop)
    joined = np.concatenate(parts)
    return joined.astype(object) if joined.dtype.kind in "UO" else torch.from_numpy(joined)
