"""Rows and targets of every kind for the public functions that take data, and what must come out (test_front_doors.py).

A case is a table of plain float64 numbers, a type of numbers that it is rounded to, and a container that it is put into. What a
function answers for the container must be what it answers for the plain arrays with the same (rounded) numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
import xarray as xr
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bll_pyro as bll

type Values = NDArray[Any]

NUM_COLUMNS = 3
SIZES = (0, 1, 2, 3, 8, 30)
TYPES = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
TORCH_ONLY = {"bfloat16": torch.bfloat16}


class Items(Dataset[Any]):
    """A dataset of pairs, or of inputs alone."""

    def __init__(self, inputs: Values, targets: Values | None) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        row = torch.tensor(self.inputs[index])
        return row if self.targets is None else (row, torch.tensor(self.targets[index]))


class Stream(IterableDataset[Any]):
    """Items that come one after the other."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        return (self.items[index] for index in range(len(self.items)))


def readonly(values: Values) -> Values:
    copied = values.copy()
    copied.flags.writeable = False
    return copied


def memory_mapped(values: Values) -> Values:
    folder = tempfile.mkdtemp(prefix="front-doors-")
    path = Path(folder) / "rows.npy"
    np.save(path, values)
    loaded: Values = np.load(path, mmap_mode="r" if values.size else None)
    path.unlink()
    Path(folder).rmdir()
    return loaded


def every_other(values: Values) -> Values:
    wide = np.repeat(values, 2, axis=0)
    return wide[::2]


ARRAYS: dict[str, Callable[[Values], Any]] = {
    "array": lambda v: v,
    "read-only": readonly,
    "reversed": lambda v: v[::-1].copy()[::-1],
    "big-endian": lambda v: v.astype(v.dtype.newbyteorder(">")),
    "column-major": np.asfortranarray,
    "every other row": every_other,
    "memory-mapped": memory_mapped,
    "masked": np.ma.masked_array,
    "matrix of objects": lambda v: v.astype(object),
    "tensor": lambda v: torch.tensor(v),
    "tensor that wants gradients": lambda v: (
        torch.tensor(v).requires_grad_() if v.dtype.kind == "f" else torch.tensor(v)
    ),
    "transposed tensor": lambda v: torch.tensor(v.T.copy()).T if v.ndim == 2 else torch.tensor(v),
    "list": lambda v: v.tolist(),
    "list of arrays": list,
    "list of tensors": lambda v: [torch.tensor(row) for row in v],
    "tuple of rows": lambda v: tuple(v.tolist()),
    "frame": lambda v: pd.DataFrame(v) if v.ndim == 2 else pd.Series(v),
    "frame with an index": lambda v: (pd.DataFrame if v.ndim == 2 else pd.Series)(
        v, index=np.arange(len(v))[::-1] * 7
    ),
    "xarray": lambda v: xr.DataArray(v),
    "sparse": lambda v: scipy.sparse.csr_array(v) if v.ndim == 2 else v,
    "iterator": lambda v: iter(v.tolist()),
    "generator": lambda v: (row for row in v.tolist()),
    "dictionary": lambda v: {"rows": v},
    "text": lambda v: v.astype(str),
    "None": lambda v: None,
}
PAIRS: dict[str, Callable[[Values, Values | None], Any]] = {
    "dataset": Items,
    "tensor dataset": lambda x, y: TensorDataset(*(torch.tensor(v) for v in (x, y) if v is not None)),
    "loader": lambda x, y: DataLoader(Items(x, y), batch_size=4),
    "loader of a stream": lambda x, y: DataLoader(Stream(Items(x, y)), batch_size=4),
    "data": lambda x, y: bll.Data(x if y is None else (x, y)),
    "weighted data": lambda x, y: bll.Data(x if y is None else (x, y), sample_weight=np.ones(len(x))),
    "store": lambda x, y: bll.Features.from_tensors(torch.tensor(x), None if y is None else torch.tensor(y)),
}


@dataclass(frozen=True)
class Case:
    """One call: a door, rows and targets, their type, and their containers."""

    door: str
    inputs: Values
    targets: Values
    container: str
    target_container: str

    def __repr__(self) -> str:
        return (
            f"Case({self.door!r}, np.array({self.inputs.tolist()}, {str(self.inputs.dtype)!r}).reshape({self.inputs.shape}), "
            f"np.array({self.targets.tolist()}, {str(self.targets.dtype)!r}), {self.container!r}, {self.target_container!r})"
        )
