"""Tables of numbers and categories, CSV or Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bll_pyro.checks import switch
from bll_pyro.cli.data.arrays import class_numbers
from bll_pyro.cli.data.base import DataSource, Opened, Rows
from bll_pyro.cli.data.encoding import Encoding, column_numbers, learn, require, texts_of
from bll_pyro.cli.data.table_files import TableFile
from bll_pyro.cli.usage import UsageError
from bll_pyro.files import user_path
from bll_pyro.tensorfile import sha256

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Table(DataSource):
    """A table, CSV (with a first line of names) or Parquet. Its columns are taken by name.

    Parameters
    ----------
    path
        The file.
    target
        Column of the targets: numbers, or texts, which are classes; a tuple of several columns of numbers; None has none.
    features
        Columns of the inputs; None takes all others. Texts are categories, one feature of 0 and 1 for each.
    index
        Column that names the rows; None numbers them from 0.
    categories
        Columns of numbers that are categories.
    ordered
        Columns whose categories have an order, such as ``{size: [S, M, L]}``; they are coded 0, 1, 2.
    fill_missing
        Take the median of the training rows for missing numbers, with one more feature that says so, and a category of its
        own for missing categories. False refuses them, with row and column.
    """

    path: str
    target: str | tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    index: str | None = None
    categories: tuple[str, ...] = ()
    ordered: Mapping[str, tuple[str, ...]] | None = None
    fill_missing: bool = False

    def __post_init__(self) -> None:
        switch(self.fill_missing, "fill_missing", "Table")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns of the targets."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    def file(self, encoding: Encoding | None = None) -> TableFile:
        """The file; with an encoding its categories are read as they are written."""
        texts = (*self.categories, *(self.ordered or {})) if encoding is None else encoding.texts
        index = () if self.index is None else (self.index,)
        file = TableFile(user_path(self.path), (*texts, *index))
        file.check()
        return file

    def open(self) -> Opened:
        """Inputs are a frame of the columns as they are; :meth:`learned` makes features of them."""
        file = self.file()
        frame = file.read()
        frame.columns = frame.columns.map(str)
        beside = (*self.targets, *(() if self.index is None else (self.index,)))
        require(frame.columns, [*beside, *(self.features or ())])
        if not len(frame):
            raise UsageError(f"{file.path}: expected rows, got none below the names")
        names = (
            [name for name in frame.columns if name not in beside]
            if self.features is None
            else list(self.features)
        )
        if not names:
            raise UsageError(f"{file.path}: expected columns of inputs beside {', '.join(beside)}, got none")
        targets, classes = self._targets(frame)
        row_ids = (
            range(len(frame)) if self.index is None else texts_of(frame[self.index], fills=False).tolist()
        )
        return Opened(
            frame[names], targets, row_ids, tuple(names), classes, fingerprint=partial(sha256, file.path)
        )

    def learned(self, opened: Opened, rows: Rows) -> Encoding:
        """The encoding, from some rows alone: those of training."""
        return learn(opened.inputs.iloc[rows], self.categories, self.ordered or {}, self.fill_missing)

    def _targets(self, frame: pd.DataFrame) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """Class numbers and names of classes, or values."""
        import pandas as pd

        if not self.targets:
            return None, None
        for name in self.targets:
            if (missing := np.asarray(frame[name].isna())).any():
                raise UsageError(
                    f"column {name!r}: expected a target in every row, got {int(missing.sum()):,} missing, the first in row "
                    f"{int(missing.argmax())} (counted from 0); leave these rows out"
                )
        if len(self.targets) > 1:
            return np.stack([column_numbers(frame[name]) for name in self.targets], 1).astype(
                np.float32
            ), None
        column = frame[self.targets[0]]
        if pd.api.types.is_integer_dtype(column):
            return column.to_numpy(np.int64), None
        if pd.api.types.is_float_dtype(column):
            return column_numbers(column).astype(np.float32), None
        return class_numbers(column.astype(str).to_numpy())


def streamed(
    table: Table, encoding: Encoding, num_rows: int, unknown: Counter[str]
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Names and features of the rows of a table, some at a time; categories that are not known are counted by column."""
    file = table.file(encoding)
    index = [] if table.index is None else [table.index]
    require(file.columns, [*encoding.names, *index])
    for frame in file.blocks(num_rows, [*encoding.names, *index]):
        row_ids = frame.index if table.index is None else texts_of(frame[table.index], fills=False)
        yield np.asarray(row_ids), encoding.features(frame, unknown)
