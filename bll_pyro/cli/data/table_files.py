"""CSV and Parquet files as pandas frames: whole, or some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll_pyro.cli.usage import UsageError

if TYPE_CHECKING:
    import pandas as pd

CSV, PARQUET = (".csv", ".tsv", ".txt"), (".parquet", ".pq")


@dataclass(frozen=True)
class TableFile:
    """One file with a table.

    Parameters
    ----------
    path
        CSV with a line of names, or Parquet.
    texts
        Columns that are read as they are written: ``007`` stays ``007``. Of a Parquet file the types are known.
    """

    path: Path
    texts: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise a UsageError if there is no such file, or its kind is not known."""
        if not self.path.is_file():
            what = "is a folder" if self.path.exists() else "does not exist"
            raise UsageError(f"expected a table, got {self.path}, which {what}")
        if self.path.suffix.lower() not in CSV + PARQUET:
            raise UsageError(
                f"expected a table ({', '.join(CSV + PARQUET)}), got {self.path}; write it as CSV or Parquet"
            )

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file."""
        return self.path.suffix.lower() in PARQUET

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        if self.is_parquet:
            return tuple(self._parquet().schema_arrow.names)
        return tuple(map(str, self._csv(nrows=0).columns))

    def read(self) -> pd.DataFrame:
        """The whole table; rows are numbered from 0."""
        if not self.is_parquet:
            return self._csv()
        try:
            return self._parquet().read().to_pandas(ignore_metadata=True)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def num_rows(self) -> int:
        """Number of rows; those of a CSV are counted, without holding them."""
        if self.is_parquet:
            number: int = self._parquet().metadata.num_rows
            return number
        return sum(len(part) for part in self._parts(1 << 16, [self.columns[0]]))

    def blocks(self, num_rows: int, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Frames of some columns, with at most so many rows, one after the other."""
        start = 0
        for frame in self._parts(num_rows, list(columns)):
            frame.index = range(start, start + len(frame))
            start += len(frame)
            yield frame[list(columns)]

    def _parts(self, num_rows: int, columns: list[str]) -> Iterator[pd.DataFrame]:
        yield from _Told(lambda: self._opened(num_rows, columns), self._damaged)

    def _opened(self, num_rows: int, columns: list[str]) -> Iterator[pd.DataFrame]:
        if self.is_parquet:
            batches = self._parquet().iter_batches(num_rows, columns=columns)
            return (batch.to_pandas() for batch in batches)
        parts: Iterator[pd.DataFrame] = self._csv(chunksize=num_rows, usecols=columns)
        return parts

    def _parquet(self) -> Any:
        try:
            import pyarrow as pa
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise ImportError(
                "expected pyarrow, which reads and writes Parquet, got none; pip install 'bll-pyro[tables]', or use CSV"
            ) from error
        try:
            return ParquetFile(self.path, memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._damaged(error) from error

    def _csv(self, **options: Any) -> Any:
        import pandas as pd

        separator = "\t" if self.path.suffix.lower() == ".tsv" else ","
        texts = dict.fromkeys(self.texts, str)
        try:
            # "utf-8-sig": spreadsheets begin a file with a mark
            return pd.read_csv(
                self.path, sep=separator, dtype=texts, low_memory=False, encoding="utf-8-sig", **options
            )
        except (OSError, ValueError) as error:  # pandas' own are ValueErrors
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UsageError:
        kind = "Parquet" if self.is_parquet else "CSV with a first line of names"
        return UsageError(
            f"expected a whole table ({kind}), got {self.path}, which cannot be read: {str(error).strip()}"
        )


class _Told:
    """Parts of a file, whose errors are told as those of the file, and which is closed after one and when nobody reads on."""

    def __init__(
        self, opened: Callable[[], Iterator[pd.DataFrame]], damaged: Callable[[Exception], UsageError]
    ) -> None:
        self._opened, self._damaged = opened, damaged
        self._parts: Any = None

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return self

    def __next__(self) -> pd.DataFrame:
        try:
            if self._parts is None:
                self._parts = self._opened()
            return next(self._parts)
        except (OSError, ValueError) as error:
            self.close()
            if isinstance(error, UsageError):
                raise
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close what has been opened; a generator that delegates to this calls it when it is closed."""
        if hasattr(self._parts, "close"):
            self._parts.close()
