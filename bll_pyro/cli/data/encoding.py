"""``Encoding``: what the columns of a table are, learned from training rows, so that other rows become the same features.

Categories are coded by scikit-learn's ``OneHotEncoder`` and ``OrdinalEncoder``. What is learned are a few numbers and texts, which
are kept as plain JSON, and the transformers are made anew from them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.declaration import Declaration

if TYPE_CHECKING:
    import pandas as pd

MISSING = "(missing)"  # the category of a missing value
MOST_CATEGORIES = 500  # of a column; more are names or numbers of things


@dataclass(frozen=True, eq=False)
class Column(Declaration):
    """A column of a table, and how it becomes features.

    Parameters
    ----------
    name
        Its name.
    """

    family: ClassVar[str] = "columns"
    name: str

    @abstractmethod
    def features(self, column: pd.Series, unknown: Counter[str]) -> dict[str, np.ndarray]:
        """Features ``[N]`` by name; rows with a category that is not known are counted."""


@dataclass(frozen=True, eq=False)
class NumberColumn(Column):
    """Numbers, as they are.

    Parameters
    ----------
    fill
        What stands in for a missing value: the median of the training rows. None refuses missing values.
    is_flagged
        Whether one more feature says which values were missing.
    """

    fill: float | None = None
    is_flagged: bool = False

    def features(self, column: pd.Series, unknown: Counter[str]) -> dict[str, np.ndarray]:
        """The numbers, and where they were missing."""
        values = column_numbers(column)
        missing = np.isnan(values)
        if missing.any():
            if self.fill is None:
                raise _refused(column, missing)
            values = np.where(missing, self.fill, values)
        flags = {f"{self.name} is missing": missing.astype(np.float32)} if self.is_flagged else {}
        return {self.name: values.astype(np.float32, copy=False), **flags}


@dataclass(frozen=True, eq=False)
class CategoryColumn(Column):
    """Categories: a feature of 0 and 1 for each of them, or their places in an order.

    Parameters
    ----------
    values
        The categories of the training rows. A row with another one has 0 for all of them.
    is_ordered
        Whether they have an order and are coded 0, 1, 2, ...; then another category is refused.
    fills
        Whether a missing value is a category; else it is refused.
    """

    values: tuple[str, ...] = ()
    is_ordered: bool = False
    fills: bool = False

    def features(self, column: pd.Series, unknown: Counter[str]) -> dict[str, np.ndarray]:
        """One column for each category, or the place."""
        from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

        texts = texts_of(column, self.fills)
        is_other = ~np.isin(texts, self.values)
        if self.is_ordered:
            if is_other.any():
                row = int(is_other.argmax())
                raise UsageError(
                    f"column {self.name!r}: expected one of {', '.join(self.values)}, got {texts[row]!r} in row {column.index[row]}"
                )
            ordered = OrdinalEncoder(categories=[list(self.values)], dtype=np.float32)
            return {self.name: ordered.fit_transform(texts[:, None])[:, 0]}
        if is_other.any():
            unknown[self.name] += int(is_other.sum())
        coder = OneHotEncoder(
            categories=[list(self.values)], handle_unknown="ignore", sparse_output=False, dtype=np.float32
        )
        coded = coder.fit_transform(texts[:, None])
        return {f"{self.name}={value}": coded[:, k] for k, value in enumerate(self.values)}


@dataclass(frozen=True, eq=False)
class Encoding(Declaration):
    """From the columns of a table, by name and in any order, to features.

    Parameters
    ----------
    columns
        In the order of the features.
    """

    family: ClassVar[str] = "data"
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that a table needs."""
        return tuple(column.name for column in self.columns)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the columns that are read as they are written."""
        return tuple(column.name for column in self.columns if isinstance(column, CategoryColumn))

    def features(self, frame: pd.DataFrame, unknown: Counter[str] | None = None) -> pd.DataFrame:
        """The features of a table; ``unknown`` counts rows with a category that is not known, by column."""
        import pandas as pd

        require(frame.columns, self.names)
        counted: Counter[str] = Counter() if unknown is None else unknown
        found: dict[str, np.ndarray] = {}
        for column in self.columns:
            found |= column.features(frame[column.name], counted)
        return pd.DataFrame(found, index=frame.index)


def learn(
    frame: pd.DataFrame, categories: Iterable[str], ordered: Mapping[str, Sequence[str]], fill_missing: bool
) -> Encoding:
    """The encoding of a table, from its training rows."""
    require(frame.columns, [*categories, *ordered])
    made: list[Column] = []
    for name in map(str, frame.columns):
        column = frame[name]
        if bool(column.isna().all()):
            raise UsageError(f"column {name!r}: expected values in the training rows, got none; leave it out")
        if name in ordered:
            made.append(CategoryColumn(name, tuple(map(str, ordered[name])), is_ordered=True))
        elif name in categories or not _is_of_numbers(column):
            made.append(_categories(name, column, fill_missing))
        else:
            values = column_numbers(column)
            missing = bool(np.isnan(values).any())
            if missing and not fill_missing:
                raise _refused(column, np.isnan(values))
            median = float(np.nanmedian(values)) if fill_missing else None
            made.append(NumberColumn(name, median, missing))
    return Encoding(tuple(made))


def require(there: Iterable[Any], names: Iterable[str]) -> None:
    """Raise a UsageError unless all these columns are there."""
    known = [str(name) for name in there]
    if missing := [name for name in names if name not in known]:
        shown = ", ".join(known[:20]) + ", ..." * (len(known) > 20)
        close = nearest(missing[0], known)
        remedy = f"; {close}" if close.startswith("did") else ""
        raise UsageError(
            f"expected the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, "
            f"got a table with {shown or 'none'}{remedy}"
        )


def column_numbers(column: pd.Series) -> np.ndarray:
    """A column as numbers ``[N]``, NaN where they are missing; a text among them is refused with its row."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        values = column.to_numpy(np.float32)
    else:
        values = _parsed(column)
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise UsageError(
            f"column {column.name!r}: expected numbers that float32 can hold, got {column.iloc[row]} in row {column.index[row]} "
            "(counted from 0)"
        )
    return values


def _parsed(column: pd.Series) -> np.ndarray:
    """Numbers of a column that holds objects, texts among them perhaps."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise UsageError(
            f"column {column.name!r}: expected numbers or categories, got dates; make numbers of them, or leave the column out"
        )
    found = pd.to_numeric(column, errors="coerce")
    wrong = np.asarray(found.isna() & column.notna())
    if wrong.any():
        row = int(wrong.argmax())
        raise UsageError(
            f"column {column.name!r}: expected numbers, got {column.iloc[row]!r} in row {column.index[row]} "
            "(counted from 0)"
            f"{f' and {int(wrong.sum()) - 1:,} more such values' if wrong.sum() > 1 else ''}; correct it, or say that "
            "the column holds categories: data.categories"
        )
    values: np.ndarray = found.to_numpy(np.float32, na_value=np.nan)
    return values


def texts_of(column: pd.Series, fills: bool) -> np.ndarray:
    """A column as texts ``[N]``; whole numbers are the same texts in every type of number."""
    import pandas as pd

    missing = np.asarray(column.isna())
    if missing.any() and not fills:
        raise _refused(column, missing)
    if pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 == 0).all()):
        column = column.astype("Int64")
    texts = column.astype(str).to_numpy(object)
    texts[missing] = MISSING
    return texts


def _categories(name: str, column: pd.Series, fill_missing: bool) -> CategoryColumn:
    from sklearn.preprocessing import OneHotEncoder

    texts = texts_of(column, fill_missing)
    values = OneHotEncoder().fit(texts[:, None]).categories_[0]
    if len(values) > MOST_CATEGORIES:
        raise UsageError(
            f"column {name!r}: expected at most {MOST_CATEGORIES} categories, got {len(values):,} different texts in "
            f"{len(column):,} rows; leave it out (data.features names those to use), or take it as data.index"
        )
    return CategoryColumn(name, tuple(map(str, values)), fills=fill_missing)


def _is_of_numbers(column: pd.Series) -> bool:
    """Whether a column holds numbers: by its type, or, of texts, if half of them or more are written numbers."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        return True
    if isinstance(column.dtype, pd.CategoricalDtype):
        return False
    given = column.dropna()
    return bool(2 * pd.to_numeric(given, errors="coerce").notna().sum() >= len(given))


def _refused(column: pd.Series, missing: np.ndarray) -> UsageError:
    return UsageError(
        f"column {column.name!r}: expected a value in every row, got {int(missing.sum()):,} missing, the first in row "
        f"{column.index[int(missing.argmax())]} (counted from 0); fill them in, or fit with data.fill_missing: true"
    )
