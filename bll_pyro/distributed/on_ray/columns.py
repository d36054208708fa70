"""Columns of a data set of Ray Data: inputs, targets and row ids of a block as tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.features.fingerprint import function_fingerprint
from bll_pyro.frame import as_floats
from bll_pyro.shards.ids import Ids, checked_ids, first_ids

type RowBlock = Mapping[str, np.ndarray]  # columns by name


@dataclass(frozen=True)
class RowColumns:
    """Which columns of a data set are what.

    Parameters
    ----------
    inputs
        One column of numbers, lists or tensors, ``[N, ...]``, or several of numbers, one for each feature.
    row_id
        Column of ids, whole numbers or texts; None where rows need none.
    targets
        Column of targets, numbers or lists of numbers; None for none.
    transform
        From the inputs of some rows, an array as it is in the columns, to those of the backbone; None makes a tensor of them.
    """

    inputs: str | tuple[str, ...]
    row_id: str | None = None
    targets: str | None = None
    transform: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, inputs: str | Sequence[str], **others: Any) -> RowColumns:
        """The same from names in any sequence."""
        return cls(inputs if isinstance(inputs, str) else tuple(inputs), **others)

    @property
    def names(self) -> list[str]:
        """Names of all of them."""
        inputs = (self.inputs,) if isinstance(self.inputs, str) else self.inputs
        return list(dict.fromkeys(name for name in (*inputs, self.row_id, self.targets) if name is not None))

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns of inputs, where each is a feature."""
        return None if isinstance(self.inputs, str) else self.inputs

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and transform: rows of other ones are not mixed in one folder."""
        said = [self.inputs, self.row_id, self.targets]
        transform = "" if self.transform is None else function_fingerprint(self.transform)
        return hashlib.sha256((json.dumps(said) + transform).encode()).hexdigest()

    def check(self, found: Collection[str]) -> None:
        """ValueError where a data set lacks one of the columns."""
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ValueError(
                f"rows: expected columns {', '.join(map(repr, missing))}, got {', '.join(found)}; name those of your data by "
                "inputs=, row_id= and targets="
            )

    def ids_of(self, block: RowBlock) -> Ids:
        """Ids of the rows of a block; ValueError where one is missing or occurs twice."""
        assert self.row_id is not None
        return checked_ids(_whole(block, self.row_id), len(block[self.row_id]))

    def inputs_of(self, block: RowBlock, index: np.ndarray | slice) -> Any:
        """Inputs of some rows, as the backbone takes them."""
        if isinstance(self.inputs, str):
            given = _whole(block, self.inputs, index)
        else:
            given = np.stack([_whole(block, name, index) for name in self.inputs], 1)
        if self.transform is not None:
            return self.transform(given)
        if given.dtype.kind not in "fiub":
            raise ValueError(
                f"rows: expected numbers in {self.inputs!r}, got {given.dtype}; make numbers of them by transform="
            )
        tensor = torch.from_numpy(np.array(given))
        return tensor if isinstance(self.inputs, str) else as_floats(tensor)

    def targets_of(self, block: RowBlock, index: np.ndarray | slice, ids: Ids | None = None) -> Tensor | None:
        """Targets of some rows; ValueError where one is missing or no number, with the ids of the rows."""
        if self.targets is None:
            return None
        given = _whole(block, self.targets, index)
        if given.dtype.kind not in "fiub":
            raise ValueError(
                f"rows: expected targets that are numbers in {self.targets!r}, got {given.dtype}; map labels to class numbers"
            )
        finite = np.isfinite(given).reshape(len(given), -1).all(1)
        if not finite.all():
            named = "" if ids is None else f", with the ids {first_ids(np.asarray(ids)[~finite].tolist())}"
            raise ValueError(
                f"rows: expected a target in each row, got {int((~finite).sum())} rows without a finite number in "
                f"{self.targets!r}{named}; drop these rows"
            )
        return torch.from_numpy(np.array(given))


def _whole(block: RowBlock, name: str, index: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Some rows of a column as one array; ValueError for gaps, or lists of several lengths."""
    values = block[name][index]
    if values.dtype != object or not len(values):
        return values
    if any(value is None for value in values):
        raise ValueError(
            f"rows: expected a value in each row of {name!r}, got gaps; fill them or drop the rows"
        )
    if not isinstance(values[0], (np.ndarray, list, tuple)):
        return values
    shapes = {np.shape(value) for value in values}
    if len(shapes) != 1:
        raise ValueError(
            f"rows: expected one shape in all rows of {name!r}, got {sorted(shapes)[:3]}; bring them to one shape"
        )
    return np.stack([np.asarray(value) for value in values])
