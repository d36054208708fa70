"""What data of every kind are: a declaration that opens to rows, which can be taken by number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from bll_pyro.declaration import Declaration

Rows = Int[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Opened:
    """Rows that were opened.

    Parameters
    ----------
    inputs
        An array ``[N, ...]``, a frame, or a map-style dataset of inputs alone.
    targets
        Class numbers or values, ``[N]`` or ``[N, T]``; None where the data have none.
    row_ids
        What a row is called: a file, an index of a table, a number.
    feature_names
        Names of the columns of a table; None for other inputs.
    classes
        Names of the classes, in the order of their numbers; None where targets are no classes.
    given_parts
        Row numbers by name of the part, where the data come split (folders ``train`` and ``test``); they are kept.
    fingerprint
        Gives a hash of the contents, by which data that changed are noticed; None where only Python knows them.
    """

    inputs: Any
    targets: np.ndarray | None
    row_ids: Sequence[str | int]
    feature_names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    given_parts: Mapping[str, Rows] | None = None
    fingerprint: Callable[[], str] | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def inputs_of(self, rows: Rows) -> Any:
        """The inputs of some rows, in the same form."""
        if isinstance(self.inputs, Dataset):
            return _Chosen(self.inputs, rows)
        return self.inputs.iloc[rows] if hasattr(self.inputs, "iloc") else self.inputs[rows]

    def blocks(self, num_rows: int) -> Iterator[tuple[Sequence[str | int], Any]]:
        """Names and inputs of the rows in order, at most so many at a time; arrays on disk are read as they come."""
        for start in range(0, len(self), num_rows):
            part = slice(start, start + num_rows)
            if isinstance(self.inputs, Dataset):
                inputs = self.inputs_of(np.arange(len(self))[part])
            else:
                inputs = self.inputs.iloc[part] if hasattr(self.inputs, "iloc") else self.inputs[part]
            yield self.row_ids[part], inputs

    def take(self, rows: Rows) -> Any:
        """Inputs and targets of some rows, as :func:`bll_pyro.fit` takes them: of classes their names."""
        if self.targets is None:
            raise ValueError("expected data with targets, got inputs alone")
        targets = self.targets if self.classes is None else np.asarray(self.classes)[self.targets]
        return self.inputs_of(rows), targets[rows]


class _Chosen(Dataset[Any]):
    """Some rows of a dataset of inputs."""

    def __init__(self, inputs: Any, rows: Rows) -> None:
        self.inputs, self.rows = inputs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[self.rows[index]]


class DataSource(Declaration):
    """Where rows come from. Nothing is read before :meth:`open`.

    Paths are as the user wrote them: a relative one starts in the present folder.
    """

    family: ClassVar[str] = "data"

    @abstractmethod
    def open(self) -> Opened:
        """Read what there is; :class:`bll_pyro.cli.usage.UsageError` for data that cannot be used as they are declared."""
