"""Tables: data frames and series of every library that narwhals reads (pandas, polars, Arrow, ...), in and out.

narwhals and the library of a frame are imported when one comes in or goes out, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import nn

from bll_pyro.summary import Summary

PLAIN = ("builtins", "numpy", "torch", "scipy", "bll_pyro")  # packages whose objects are no frames
NUMBERS = "biuf"  # kinds of NumPy's types
SHOWN = 5  # names in a message
ENCODE = (
    "encode categories with scikit-learn's OneHotEncoder or OrdinalEncoder and texts with a vectorizer, turn dates into numbers, "
    "give objects that are numbers their type (astype(float)), or drop these columns"
)
FILL = "fill them in, for example with scikit-learn's SimpleImputer, or drop these rows"
UNIQUE = "rename or drop all but one of them"


@dataclass(frozen=True, eq=False)
class Table(Summary):
    """What a data frame says beside its numbers.

    Parameters
    ----------
    names
        Names of its columns; None where they are no strings.
    backend
        Its library, as narwhals names it.
    index
        Its index, where the library has one.
    """

    names: tuple[str, ...] | None = None
    backend: Any = "pandas"
    index: Any = None

    @classmethod
    def of(cls, view: Any, what: str) -> Self:
        """Of a frame that narwhals reads; TypeError where only some names are strings."""
        import narwhals.stable.v2 as nw

        texts = [name for name in view.columns if isinstance(name, str)]
        if 0 < len(texts) < len(view.columns):
            others = [name for name in view.columns if not isinstance(name, str)]
            raise TypeError(
                f"{what}: expected columns that all have strings as names, or none, got {_listed(others)} among them; rename "
                "them: frame.columns = frame.columns.astype(str)"
            )
        return cls(tuple(map(str, texts)) or None, view.implementation, nw.maybe_get_index(view))

    @property
    def in_pandas(self) -> Self:
        """The same, as a frame of pandas."""
        known = self.index is not None and type(self.index).__module__.startswith("pandas")
        return replace(self, backend="pandas", index=self.index if known else None)

    def frame(self, columns: Mapping[str, np.ndarray]) -> Any:
        """These columns as a frame of the same library, with the same index."""
        import narwhals.stable.v2 as nw

        made = nw.from_dict(dict(columns), backend=self.backend).to_native()
        if self.index is not None:
            made.index = self.index
        return made


def view_of(data: Any, what: str) -> Any:
    """A frame or series as narwhals sees it; None for other data.

    Raises
    ------
    TypeError
        If the frame is lazy, so that its rows are not there yet.
    ValueError
        If two of its columns have the same name.
    """
    if type(data).__module__.partition(".")[0] in PLAIN:
        return None
    import narwhals.stable.v2 as nw
    from narwhals.exceptions import DuplicateError

    try:
        view = nw.from_native(data, allow_series=True, pass_through=True)
        if view is data and hasattr(data, "__arrow_c_stream__") and hasattr(data, "schema"):
            view = nw.from_arrow(data, backend="pyarrow")  # a batch of records
    except DuplicateError as error:
        names = list(data.columns)
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        raise ValueError(
            f"{what}: expected columns with different names, got {_listed(repeated)} more than once; {UNIQUE}"
        ) from error
    if isinstance(view, nw.LazyFrame):
        raise TypeError(
            f"{what}: expected a frame whose rows are in memory, got a lazy {type(data).__name__}; collect it first, as with "
            "frame.collect() of polars"
        )
    return view if isinstance(view, nw.DataFrame | nw.Series) else None


def table_of(data: Any, what: str) -> Table | None:
    """What a data frame says beside its numbers; None for other data."""
    view = view_of(data, what)
    return Table.of(view, what) if hasattr(view, "columns") else None


def numbers_of(view: Any, what: str) -> np.ndarray:
    """The numbers of a frame ``[N, D]`` or of a series ``[N]``; missing values of a series are NaN.

    Raises
    ------
    TypeError
        If a column does not hold numbers or booleans, by name and type.
    ValueError
        If a column of a frame has missing values, by name.
    """
    import narwhals.stable.v2 as nw

    if isinstance(view, nw.Series):
        if not _is_number(view):
            raise TypeError(f"{what}: expected numbers, got a series of {view.dtype}; {ENCODE}")
        return _values(view)
    types, series = dict(view.schema), list(view.iter_columns())
    wrong = [f"{name} ({one.dtype})" for name, one in zip(types, series, strict=True) if not _is_number(one)]
    if wrong:
        raise TypeError(f"{what}: expected columns of numbers, got {_listed(wrong)}; {ENCODE}")
    if not types:
        raise ValueError(
            f"{what}: expected a frame with columns of numbers, got one without columns; keep some"
        )
    is_uniform = len(set(types.values())) == 1 and _is_plain(next(iter(types.values())))
    values = view.to_numpy() if is_uniform else None
    if values is None or values.dtype.kind not in NUMBERS:  # pandas makes objects of columns that Arrow holds
        values = np.column_stack([_values(one) for one in series])
    if values.dtype.kind == "f" and len(values):
        missing = np.isnan(values.min(0))
        if missing.any():
            names = [name for name, is_missing in zip(types, missing, strict=True) if is_missing]
            number = int(np.isnan(values).any(1).sum())
            raise ValueError(
                f"{what}: expected columns without missing values, got some in {_listed(names)} ({number} of {len(values)} rows); "
                f"{FILL}"
            )
    return values


def split_off(data: Any, target: str, what: str) -> tuple[Any, Any]:
    """A frame without the column of the targets, and that column."""
    view = view_of(data, what)
    columns = getattr(view, "columns", None)
    if columns is None:
        raise TypeError(
            f"{what}: expected a data frame beside the name of its target column, got {type(data).__name__} and {target!r}; pass "
            "(inputs, targets)"
        )
    if target not in columns:
        raise ValueError(
            f"{what}: expected a column {target!r} with the targets, got {_listed(columns)}; check its name"
        )
    return view.drop(target).to_native(), view[target].to_native()


def order_of(given: Sequence[str], names: Sequence[str], what: str) -> list[int]:
    """Positions in ``given`` of the columns ``names``; ValueError where one is missing or there are others."""
    place = {name: number for number, name in enumerate(given)}
    missing = [name for name in names if name not in place]
    if missing:
        raise ValueError(
            f"{what}: expected the columns of the training rows, got none named {_listed(missing)} among {_listed(given)}; add or "
            "rename them, or pass an array with the columns in order"
        )
    known = set(names)
    others = [name for name in given if name not in known]
    if others:
        raise ValueError(
            f"{what}: expected the columns of the training rows, got {_listed(others)} beside them; drop them: "
            "frame[list(fit.feature_names)]"
        )
    return [place[name] for name in names]


def names_after(backbone: nn.Module | None, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of the features that a backbone makes of named columns; None where it does not say.

    It says so as scikit-learn's transformers do, by a method ``get_feature_names_out(names)``.
    """
    if backbone is None or names is None:
        return names
    say = getattr(backbone, "get_feature_names_out", None)
    return None if say is None else tuple(map(str, say(names)))


def _is_number(series: Any) -> bool:
    """Whether a series holds numbers or booleans; narwhals does not know what is in a sparse one of pandas."""
    import narwhals.stable.v2 as nw

    if series.dtype == nw.Unknown:
        return np.asarray(series.to_native()).dtype.kind in NUMBERS
    return bool(series.dtype.is_numeric() or series.dtype == nw.Boolean)


def _is_plain(dtype: Any) -> bool:
    """Whether NumPy has the type, in at most 64 bits."""
    return (dtype.is_integer() or dtype.is_float()) and "128" not in type(dtype).__name__


def _values(series: Any) -> np.ndarray:
    """The numbers of a series; those that NumPy does not know, and those with missing ones among them, in float64."""
    import narwhals.stable.v2 as nw

    if series.dtype == nw.Unknown:
        return np.asarray(series.to_native())
    is_known = (_is_plain(series.dtype) or series.dtype == nw.Boolean) and not series.null_count()
    values: np.ndarray = (series if is_known else series.cast(nw.Float64)).to_numpy()
    return values


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
