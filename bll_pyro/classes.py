"""Class labels of any type, and the numbers that stand for them: read once, where targets come in, and given back.

Inside the library a class is its number, 0 to C - 1. :class:`Classes` holds the labels in the order of these numbers, and
turns labels into numbers and back. Text cannot be in a tensor: :class:`Labels` is the numbers with the classes that they are of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

TYPES = (str, bool, int, float)  # of labels; a file of JSON holds no others
MOST_SHOWN = 10  # labels in a message
EXPECTED = "text, whole numbers or booleans, all of one type"


@dataclass(frozen=True)
class Classes:
    """The labels of C classes, in the order of their numbers.

    Parameters
    ----------
    labels
        Different labels of one type: text, booleans, or whole numbers.
    is_ordered
        Whether this order was declared by the data, as by an ordered categorical or an Enum; otherwise it is that of sorting.
    """

    labels: tuple[Any, ...]
    is_ordered: bool = False

    @classmethod
    def declared(cls, labels: Iterable[Any], owner: str) -> Classes:
        """Labels that are named one by one; ValueError or TypeError unless they are different labels of one type."""
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise TypeError(
                f'{owner}(classes=...): expected a list of labels, such as ["cat", "dog"], got {labels!r}'
            )
        given = [plain_label(label) for label in labels]
        kinds = {type(label) for label in given}
        if not given or len(kinds) > 1 or not kinds <= set(TYPES):
            raise TypeError(
                f"{owner}(classes=...): expected labels that are {EXPECTED}, got {shown(given)}; convert them, e.g. by str()"
            )
        if len(set(given)) < len(given) or (
            float in kinds and not all(label.is_integer() for label in given)
        ):
            raise ValueError(
                f"{owner}(classes=...): expected different labels, numbers among them whole, got {shown(given)}"
            )
        return cls(tuple(given), is_ordered=True)

    def __len__(self) -> int:
        """Number of classes C."""
        return len(self.labels)

    def __str__(self) -> str:
        return shown(self.labels)

    @cached_property
    def array(self) -> NDArray[Any]:
        """The labels ``[C]``, of the type that they came in."""
        return np.asarray(self.labels)

    @property
    def are_text(self) -> bool:
        """Whether the labels are text."""
        return isinstance(self.labels[0], str)

    def label_of(self, numbers: Int[Tensor, " N"]) -> NDArray[Any]:
        """Labels ``[N]`` of class numbers."""
        return self.array[numbers.cpu().numpy()]

    def numbers_of(self, targets: Tensor | Labels, what: str = "targets") -> Int[Tensor, " N"]:
        """Class numbers ``[N]`` of labels; where these are text, whole numbers are taken as class numbers.

        Raises
        ------
        ValueError
            For a label that is none of the classes.
        TypeError
            For labels of another type.
        """
        if isinstance(targets, Labels) and targets.classes.are_text == self.are_text:
            return self._renumbered(targets, what)
        is_whole = isinstance(targets, Tensor) and not (
            targets.is_floating_point() or targets.dtype == torch.bool
        )
        if self.are_text and is_whole:
            return targets  # type: ignore[return-value]
        if isinstance(targets, Labels) or self.are_text:
            got = "other labels" if isinstance(targets, Labels) else f"values of type {targets.dtype}"
            raise TypeError(f"{what}: expected labels among {self}, got {got}; pass labels of the same type")
        if targets.dim() != 1:
            raise ValueError(
                f"{what}: expected labels of shape [N], got {list(targets.shape)}; squeeze a trailing axis of size 1"
            )
        known = torch.as_tensor(self.array).to(targets.device)
        wide = torch.float64 if known.is_floating_point() or targets.is_floating_point() else torch.int64
        known, order = known.to(wide).sort()
        place = torch.searchsorted(known, targets.to(wide)).clamp_max(len(known) - 1)
        unknown = known[place] != targets.to(wide)
        if bool(unknown.any()):
            found = targets[unknown].unique().tolist()
            raise ValueError(self._unseen(what, found, int(unknown.nonzero()[0]), int(unknown.sum())))
        return order[place]

    def _renumbered(self, targets: Labels, what: str) -> Int[Tensor, " N"]:
        if targets.classes.labels == self.labels:
            return targets.numbers
        place = {label: number for number, label in enumerate(self.labels)}
        table = torch.tensor([place.get(label, -1) for label in targets.classes.labels])
        numbers = table.to(targets.numbers.device)[targets.numbers]
        unknown = numbers < 0
        if bool(unknown.any()):
            found = [targets.classes.labels[i] for i in targets.numbers[unknown].unique().tolist()]
            raise ValueError(self._unseen(what, found, int(unknown.nonzero()[0]), int(unknown.sum())))
        return numbers

    def _unseen(self, what: str, found: list[Any], row: int, num_rows: int) -> str:
        return (
            f"{what}: expected labels among {self}, got {shown(found)} ({num_rows} rows, the first is row {row}); drop these rows, "
            "or fit with all classes named: classes=[...] of the likelihood"
        )


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels ``[N]`` as class numbers, with the classes that they are of.

    Parameters
    ----------
    numbers
        Class numbers ``[N]``, int64.
    classes
        What they are numbers of.
    """

    numbers: Int[Tensor, " N"]
    classes: Classes

    def __len__(self) -> int:
        return len(self.numbers)


def as_numbers(
    targets: Tensor | Labels, classes: Classes | None, what: str, remedy: str
) -> Shaped[Tensor, "N ..."]:
    """Targets as numbers: labels as the numbers of their classes, all else as it is; TypeError for text without classes."""
    if classes is not None:
        return classes.numbers_of(targets, what)
    if not isinstance(targets, Labels):
        return targets
    if targets.classes.are_text:
        raise TypeError(f"{what}: expected numbers, got labels {targets.classes}; {remedy}")
    return torch.as_tensor(targets.classes.array).to(targets.numbers.device)[targets.numbers]


def labels_in(array: Any, what: str) -> Labels | Any:
    """Labels that are text or in an order, from a list, an array, a Series or a column; anything else as it is.

    An ordered categorical of pandas or an Enum of polars says its classes and their order, with those that have no row. Other
    labels are those that occur, sorted. Numbers that are objects or categories become an array of numbers.

    Raises
    ------
    ValueError
        For missing labels, and for labels of several types.
    """
    if isinstance(array, (Tensor, Labels)):
        return array
    values, ordered = _values(array)
    if values is None or values.dtype.kind not in "OUT" or values.ndim != 1:
        return array
    flat = values.tolist()
    missing = [row for row, label in enumerate(flat) if _is_missing(label)]
    if missing:
        raise ValueError(
            f"{what}: expected a target in each row, got {len(missing)} that are missing (first: row {missing[0]}); drop these rows"
        )
    if ordered is None and not any(isinstance(label, str) for label in flat):
        return np.asarray(flat)
    kinds = {type(plain_label(label)) for label in flat}
    if len(kinds) > 1 or not kinds <= set(TYPES):
        got = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{what}: expected labels that are {EXPECTED}, got {got}; convert them")
    found, numbers = np.unique(np.asarray(flat), return_inverse=True)
    labels = Labels(torch.as_tensor(numbers.astype(np.int64)), Classes(tuple(found.tolist())))
    if ordered is None:
        return labels
    declared = Classes(tuple(map(plain_label, ordered)), is_ordered=True)
    return Labels(declared.numbers_of(labels), declared)


def _values(array: Any) -> tuple[NDArray[Any] | None, Iterable[Any] | None]:
    """The values of an array or column that is not made of numbers, and its categories where these are in an order."""
    if isinstance(array, (list, tuple)):
        if not any(label is None or isinstance(label, str) for label in array):
            return None, None
        values = np.empty(len(array), dtype=object)  # as an array of text, numbers among it would become text
        values[:] = array
        return values, None
    if isinstance(array, np.ndarray):
        return array, None
    dtype = getattr(array, "dtype", None)
    if getattr(dtype, "kind", "O") in "biuf" and not hasattr(dtype, "categories"):
        return None, None
    if not (hasattr(array, "__array__") or hasattr(array, "to_numpy")):
        return None, None
    import narwhals.stable.v2 as nw

    series = nw.from_native(array, series_only=True, pass_through=True)
    if not isinstance(series, nw.Series):
        ordered = getattr(dtype, "categories", None) if getattr(dtype, "ordered", False) else None
        return np.asarray(array), ordered
    if series.dtype.is_numeric() or series.dtype == nw.Boolean:
        return None, None
    if series.dtype not in (nw.String, nw.Categorical, nw.Enum, nw.Object):
        return None, None
    values = np.empty(len(series), dtype=object)
    values[:] = series.to_list()
    return values, series.dtype.categories if isinstance(series.dtype, nw.Enum) else None


def _is_missing(label: Any) -> bool:
    """Whether this is None, NaN, or another value that is not equal to itself."""
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas' NA is neither
        return True


def plain_label(label: Any) -> Any:
    """A label whose type is Python's own."""
    if isinstance(label, str):
        return str(label)
    return label.item() if isinstance(label, (np.generic, Tensor)) else label


def shown(labels: Iterable[Any]) -> str:
    """Labels in a message or in print, the first ones."""
    given = [repr(plain_label(label)) for label in labels]
    more = f", and {len(given) - MOST_SHOWN} more" if len(given) > MOST_SHOWN else ""
    return f"[{', '.join(given[:MOST_SHOWN])}{more}]"
