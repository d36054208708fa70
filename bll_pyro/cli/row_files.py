"""Files with one line for each row, written as the rows come: under its name a file is whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from csv import QUOTE_NONNUMERIC
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from bll_pyro.cli.usage import UsageError
from bll_pyro.files import LOCK, only_writer, user_path

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
Write = Callable[["pd.DataFrame"], None]


def check_out(path: Path, overwrite: bool) -> Path:
    """The path of a file to write; UsageError if it is of no kind that is written, or is there and may not be replaced."""
    path = user_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"expected a file ({' or '.join(SUFFIXES)}) to write, got {path}")
    if path.is_dir():
        raise UsageError(f"expected a file to write, got the folder {path}")
    if path.exists() and not overwrite:
        raise UsageError(
            f"expected a new file, got {path}, which exists; choose another name, or give --overwrite"
        )
    return path


@contextmanager
def row_file(path: Path, overwrite: bool) -> Iterator[Write]:
    """A function that adds the lines of a frame to the file; the file is there when the block has ended well.

    Meanwhile it has a hidden name beside it. What a process that was killed left there goes with the next file of the name.

    Raises
    ------
    OSError
        If it cannot be written: no permission, or no room.
    """
    path = check_out(path, overwrite)
    partial = path.parent / f".{path.name}.partial"
    try:
        if path.parent.is_dir():  # a lock that cannot be made would look like one that another process holds
            with TemporaryFile(dir=path.parent):
                pass
        with only_writer(path.parent, f".{path.name}{LOCK}", patience=0):
            try:
                with _opened(partial, path.suffix.lower()) as write:
                    yield write
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                check_out(path, overwrite)  # again, because it may have been made meanwhile
                os.replace(partial, path)
            finally:
                with suppress(OSError):
                    partial.unlink()
    except OSError as error:
        raise OSError(
            f"expected to write {path}, got an error of the system: {error}; make room, or choose another place by -o"
        ) from error


@contextmanager
def _opened(path: Path, suffix: str) -> Iterator[Write]:
    """A function that adds lines; Arrow writes them, many times as fast as pandas, which writes a .csv where there is no Arrow."""
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError as error:
        if suffix != ".csv":
            raise ImportError(
                "expected pyarrow, which writes Parquet, got none; pip install 'bll-pyro[tables]', or write a .csv"
            ) from error
        with path.open("w", encoding="utf-8", newline="") as file:
            yield lambda frame: _shortest(frame).to_csv(
                file, index=False, header=file.tell() == 0, quoting=QUOTE_NONNUMERIC
            )
        return
    opened: list[Any] = []

    def write(frame: pd.DataFrame) -> None:
        if not opened:  # the types of all rows are those of the first
            schema = pa.Schema.from_pandas(frame, preserve_index=False)
            opened.extend(
                ((csv.CSVWriter if suffix == ".csv" else parquet.ParquetWriter)(path, schema), schema)
            )
        writer, schema = opened
        writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))

    path.touch()
    try:
        yield write
    finally:
        if opened:
            opened[0].close()


def _shortest(frame: pd.DataFrame) -> pd.DataFrame:
    """The same numbers with as few digits as single precision needs: pandas before 3 writes those of double precision."""
    single = frame.select_dtypes("float32")
    return frame.assign(**single.astype(str).astype(float))
