"""From the body of a request to rows ``[n, ...]``: JSON, arrays of NumPy, Arrow streams; images are in ``images.py``.

A body is from outside: nothing of it is executed, nothing is allocated before its size is known to be true, and errors name
places and types, but no values.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from bll_pyro.serve.models import ServedModel
from bll_pyro.serve.problems import Problem

JSON, NPY, ARROW = "application/json", "application/x-npy", "application/vnd.apache.arrow.stream"
MAGIC = {  # of np.lib.format: version, its reader, and the bytes before the header
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
COMPRESSED = (
    "expected an Arrow stream without compression, got a compressed one; write it with compression=None"
)


def rows_of_json(body: bytes, model: ServedModel, most_rows: int) -> np.ndarray:
    """Rows of ``{"rows": [[...], ...]}``, or of objects, ``{"rows": [{"age": 40, ...}, ...]}``, for a model with columns."""
    try:
        given = from_json(body, allow_inf_nan=False, cache_strings="none")
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"expected JSON, got a body that is none: {str(error)[:200]}") from error
    if not isinstance(given, dict) or set(given) != {"rows"}:
        raise Problem(422, 'expected an object with the one member "rows", such as {"rows": [[0.1, 0.2]]}')
    rows = given["rows"]
    if not isinstance(rows, list) or not rows:
        raise Problem(422, 'expected "rows" to be a list of one row or more')
    _check_number(len(rows), most_rows)
    if isinstance(rows[0], dict):
        return rows_of_columns(_columns(rows), model)
    shape = model.input_shape
    if shape is None:
        raise Problem(
            415, "expected images, or an array of them as application/x-npy, got JSON; see GET /model"
        )
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(_NESTED[len(shape) + 1].validate_python(rows), np.float32)
        return _ready(numbers, model)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = "".join(f"[{part}]" for part in first["loc"])
        raise Problem(422, f"rows{place}: {first['msg']}; expected a row of shape {list(shape)}") from error
    except (ValueError, OverflowError) as error:  # lists of several lengths
        raise Problem(
            422, f"expected rows of shape {list(shape)}, got rows of several shapes or too large numbers"
        ) from error


def _nested(depth: int) -> Any:
    """Numbers, in lists of lists: texts and truth values are none."""
    kind: Any = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    for _ in range(depth):
        kind = list[kind]
    return TypeAdapter(kind)


_NESTED = {depth: _nested(depth) for depth in range(1, 6)}


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of rows that are objects with the same members."""
    names = list(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or len(row) != len(names) or any(name not in row for name in names):
            raise Problem(
                422, f"rows[{number}]: expected an object with the members of the first row", row=number
            )
        for name in names:
            if not isinstance(row[name], str | float | int | None):
                raise Problem(422, f"rows[{number}]: expected numbers, texts or null as members", row=number)
    return {name: [row[name] for row in rows] for name in names}


def rows_of_columns(columns: Mapping[str, Sequence[Any]], model: ServedModel) -> np.ndarray:
    """Rows of columns by name, in any order."""
    if model.columns is None:
        raise Problem(
            422, "expected rows as lists of numbers, got named columns: this model does not know names"
        )
    if missing := [name for name in model.columns if name not in columns]:
        raise Problem(
            422, f"expected the columns {', '.join(model.columns)}, got none for {', '.join(missing)}"
        )
    if model.encode is not None:
        try:
            return _ready(model.encode(columns), model)
        except (ValueError, TypeError, OverflowError) as error:
            raise Problem(422, f"expected columns as in the training: {_without_values(error)}") from error
    for name in model.columns:
        for row, value in enumerate(columns[name]):
            if not isinstance(value, int | float | np.number) or isinstance(value, bool):
                raise Problem(
                    422, f"expected numbers in the column {name!r}, got another type in row {row}", row=row
                )
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray([columns[name] for name in model.columns], np.float32).T
    except OverflowError as error:
        raise Problem(422, "expected numbers that float32 can hold, got larger ones") from error
    return _ready(numbers, model)


def rows_of_npy(body: bytes, model: ServedModel, most_rows: int) -> np.ndarray:
    """Rows of an array as ``np.save`` writes it; objects and records are refused."""
    stream = io.BytesIO(body)
    try:
        read = MAGIC[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = read(stream)
    except Exception as error:  # NumPy reads it as Python literals, which fail in many ways
        raise Problem(400, "expected an array as np.save writes it, got a body without its header") from error
    if dtype.hasobject or dtype.kind not in "fiu" or dtype.subdtype is not None:
        raise Problem(422, f"expected an array of numbers, got one of the kind {dtype.kind!r}")
    size = dtype.itemsize
    for length in shape:
        if type(length) is not int or length < 0:  # True is an int, too
            raise Problem(400, "expected an array as np.save writes it, got a shape that is none")
        size *= length
    data = memoryview(body)[stream.tell() :]
    if size != len(data):
        raise Problem(400, f"expected {size:,} bytes of data, by the header of the array, got {len(data):,}")
    if not shape or not size:
        raise Problem(422, "expected an array of one row or more, got an empty one or a single number")
    _check_number(shape[0], most_rows)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return _ready(array, model)


def rows_of_arrow(body: bytes, model: ServedModel, most_rows: int) -> np.ndarray:
    """Rows of an Arrow stream: columns by name if the model knows names, else in their order."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise Problem(415, "expected JSON or application/x-npy: pyarrow is not installed here") from error
    try:
        _refuse_compression(body, pa)
        with pa.ipc.open_stream(body) as stream:
            _check_columns(stream.schema, pa)
            batches, num_rows = [], 0
            for batch in stream:
                num_rows += batch.num_rows
                _check_number(num_rows, most_rows)
                batch.validate(full=True)  # offsets from outside, before anything follows them
                batches.append(batch)
            table = pa.Table.from_batches(batches, stream.schema)
    except Problem:
        raise
    except (
        Exception
    ) as error:  # bytes that lie are refused in many ways, also by what reads their flat buffers here
        raise Problem(400, "expected an Arrow stream, got a body that is none or is damaged") from error
    if not table.num_rows or not table.num_columns:
        raise Problem(422, "expected a table of one row or more, got an empty one")
    if model.columns is not None:
        return rows_of_columns({name: table[name].to_pylist() for name in table.column_names}, model)
    if any(column.null_count for column in table.columns):
        raise Problem(422, "expected a number in every place, got missing ones")
    try:
        return _ready(np.stack([column.to_numpy() for column in table.columns], 1), model)
    except (ValueError, TypeError) as error:
        raise Problem(422, "expected columns of numbers") from error


def _check_columns(schema: Any, pa: Any) -> None:
    kinds = pa.types
    for column in schema:
        kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
        is_plain = (
            kinds.is_floating(kind)
            or kinds.is_integer(kind)
            or kinds.is_string(kind)
            or kinds.is_large_string(kind)
        )
        if not is_plain:
            raise Problem(422, f"expected columns of numbers or texts, got one of the type {str(kind)[:50]}")
    if len(set(schema.names)) != len(schema.names):
        raise Problem(422, "expected columns with different names")


def _refuse_compression(body: bytes, pa: Any) -> None:
    """Refuse compressed batches, which a few bytes can make as large as all memory, by the flat buffers before them."""
    for message in pa.ipc.MessageReader.open_stream(body):
        if message.type in ("record batch", "dictionary"):
            header = _member(message.metadata, _root(message.metadata), 2)
            if message.type == "dictionary":
                header = _member(message.metadata, header, 1)
            if header is not None and _member(message.metadata, header, 3) is not None:
                raise Problem(422, COMPRESSED)


def _root(buffer: Any) -> int:
    return int(struct.unpack_from("<I", buffer, 0)[0])


def _member(buffer: Any, table: int | None, number: int) -> int | None:
    """Place of the table that is a member of another one; None where it is not there."""
    if table is None:
        return None
    (back,) = struct.unpack_from("<i", buffer, table)
    (length,) = struct.unpack_from("<H", buffer, table - back)
    if 4 + 2 * number >= length:
        return None
    (offset,) = struct.unpack_from("<H", buffer, table - back + 4 + 2 * number)
    if not offset:
        return None
    return table + offset + int(struct.unpack_from("<I", buffer, table + offset)[0])


def _check_number(num_rows: int, most_rows: int) -> None:
    if num_rows > most_rows:
        raise Problem(
            413, f"expected at most {most_rows:,} rows in a request, got {num_rows:,}; send several requests"
        )


def _ready(rows: np.ndarray, model: ServedModel) -> np.ndarray:
    """Rows of the right shape, finite, float32."""
    wanted = model.input_shape
    if wanted is not None and rows.shape[1:] != wanted:
        raise Problem(
            422, f"expected rows of shape {list(wanted)}, got {list(rows.shape[1:])}; see GET /model"
        )
    if wanted is None and (rows.ndim != 4 or rows.shape[1] != model.channels):
        raise Problem(422, f"expected images [n, {model.channels}, height, width], got {list(rows.shape)}")
    with np.errstate(over="ignore"):
        ready = np.ascontiguousarray(rows, np.float32)
    finite = np.isfinite(ready).reshape(len(ready), -1).all(1)
    if not finite.all():
        row = int((~finite).argmax())
        raise Problem(
            422,
            f"expected finite numbers of float32, got NaN, infinity or a larger one in row {row}",
            row=row,
        )
    return ready


def _without_values(error: Exception) -> str:
    """The message of an error of the encoding, which names columns; what stands in quotes after "got" is a value."""
    return re.sub(r"got '.*?'(?= )|got .*?(?= in row)", "got another value", str(error))[:400]
