"""Arrays of every kind (NumPy, torch, data frames, lists) as tensors, without a copy where possible."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.classes import Labels, labels_in
from bll_pyro.features.tables import numbers_of, view_of

MAX_DENSE_BYTES = 2**33  # bytes of a sparse array that is made dense
CHUNK_BYTES = 2**26  # bytes of rows that are checked or hashed at a time

# torch supports few operations on these types; the next wider signed type holds their values
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def to_tensor(array: Any, what: str) -> Tensor:
    """Return `array` as a tensor of real numbers, integers or booleans, which shares its memory where torch can.

    Parameters
    ----------
    array
        A tensor, a NumPy array (read-only and memory-mapped ones are shared, not copied), a frame or series of a library that
        narwhals reads (pandas, polars, Arrow), another array with ``__array__``, a number, or a list of numbers, lists or tensors
        of one shape. Sparse tensors and SciPy's sparse matrices become dense, which must fit in memory.
    what
        The name of the array in error messages.

    Raises
    ------
    TypeError
        When the contents are not numbers.
    ValueError
        When the rows differ in shape, values are masked, integers do not fit 64 bits, or a sparse array is too large.
    """
    if isinstance(array, Tensor):
        # a tensor that was made in inference mode cannot take part in gradients, a copy that is made outside can
        return _check_tensor(array.clone() if array.is_inference() else array.detach(), what)
    if hasattr(array, "tocoo"):
        array = _dense_array(array, what)
    if isinstance(array, (list, tuple)):
        if array and all(isinstance(row, Tensor) for row in array):
            if len({tuple(row.shape) for row in array}) > 1:
                raise ValueError(_unequal_rows(what))
            return _check_tensor(torch.stack([row.detach() for row in array]), what)
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(_unequal_rows(what)) from error
    elif not isinstance(array, np.ndarray) and (view := view_of(array, what)) is not None:
        array = numbers_of(view, what)
    elif not isinstance(array, np.ndarray):
        if not hasattr(array, "__array__") and not isinstance(array, Number):
            raise TypeError(
                f"{what}: expected a NumPy array, a tensor, a data frame or series, or a list of numbers, "
                f"got {type(array).__name__}; wrap other kinds of data in a torch Dataset"
            )
        array = np.asarray(array)
    tensor = _numpy_to_tensor(array, what)
    return _widen(tensor, what) if tensor.dtype in _WIDER else tensor


def to_targets(array: Any, what: str) -> Tensor | Labels:
    """Targets: numbers as a tensor, see :func:`to_tensor`, and labels that are text, see :func:`bll_pyro.classes.labels_in`."""
    found = labels_in(array, what)
    return found if isinstance(found, Labels) else to_tensor(found, what)


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError when a value is NaN or infinite, naming how many and the first row; integers always pass.

    Rows are checked in chunks, so that no second array of the size of the data is needed.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    num_nan = num_infinite = 0
    first = -1
    step = len(rows) if rows.nbytes <= CHUNK_BYTES else rows_per_chunk(rows)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        # a finite sum implies finite terms; one that is not finite may also be an overflow, so the terms are checked
        if chunk.sum().isfinite():
            continue
        wrong = ~torch.isfinite(chunk)
        if not wrong.any():
            continue
        nans = int(torch.isnan(chunk).sum())
        num_nan += nans
        num_infinite += int(wrong.sum()) - nans
        if first < 0:
            first = start + int(wrong.reshape(len(chunk), -1).any(1).nonzero()[0, 0])
    if first >= 0:
        raise ValueError(
            f"{what}: expected finite values, got {num_nan} NaN and {num_infinite} infinite, the first in row "
            f"{first}; remove these rows or fill in the missing values"
        )


def rows_per_chunk(tensor: Tensor, num_bytes: int = CHUNK_BYTES) -> int:
    """Return how many rows of `tensor` take up about `num_bytes`; at least one."""
    row = tensor[:1].numel() * tensor.element_size()
    return max(1, num_bytes // max(row, 1))


def permutation(num_rows: int, generator: torch.Generator) -> Tensor:
    """Return a random order of the rows, on the CPU."""
    return torch.randperm(num_rows, generator=generator, device=generator.device).cpu()


def _check_tensor(tensor: Tensor, what: str) -> Tensor:
    if tensor.layout != torch.strided:
        _check_dense_size(tuple(tensor.shape), tensor.element_size(), what)
        tensor = tensor.to_dense()
    if tensor.is_complex():
        raise TypeError(
            f"{what}: expected real numbers, got {tensor.dtype}; pass the real and imaginary parts as columns"
        )
    return _widen(tensor, what) if tensor.dtype in _WIDER else tensor


def _dense_array(array: Any, what: str) -> np.ndarray:
    """A sparse matrix or array of SciPy as a dense array."""
    _check_dense_size(array.shape, array.dtype.itemsize, what)
    return np.asarray(array.toarray())


def _check_dense_size(shape: tuple[int, ...], item_bytes: int, what: str) -> None:
    num_bytes = math.prod(shape) * item_bytes
    if num_bytes > MAX_DENSE_BYTES:
        raise ValueError(
            f"{what}: expected a sparse array of at most {MAX_DENSE_BYTES / 2**30:.0f} GiB as a dense one, got {list(shape)}, "
            f"which is {num_bytes / 2**30:.1f} GiB; choose or combine columns (scikit-learn: TruncatedSVD, SelectKBest), or pass a "
            "Dataset with dense rows and a backbone that narrows them"
        )


def _widen(tensor: Tensor, what: str) -> Tensor:
    wide = tensor.to(_WIDER[tensor.dtype])
    if tensor.dtype == torch.uint64 and wide.numel() and int(wide.min()) < 0:
        raise ValueError(
            f"{what}: expected integers below 2**63, got larger ones of type uint64; rescale them or use floats"
        )
    return wide


def _numpy_to_tensor(array: np.ndarray, what: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.getmaskarray(array).any():
            raise ValueError(
                f"{what}: expected no masked values, got a masked array; fill or drop the masked entries"
            )
        array = array.data
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{what}: expected real numbers, integers or booleans of at most 64 bits, got dtype {array.dtype}; convert "
            "text and categories to integer codes and dates to numbers first"
        )
    plain = (
        np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}") if array.dtype.kind != "b" else np.dtype(bool)
    )
    if (
        array.dtype != plain or array.dtype.num != plain.num
    ):  # another byte order, or C's name of the same type
        array = array.astype(plain)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()  # ascontiguousarray keeps a negative stride along an axis of one row
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(array)))


class _Shared:
    """The memory of a read-only array, said to be writable: torch warns about any other, and bll_pyro never writes to inputs."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array  # and so the memory: an array that is made of this object keeps the object
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _unequal_rows(what: str) -> str:
    return (
        f"{what}: expected rows of one shape, got rows of different shapes; pad them to one shape, use a Dataset, "
        "or, if this is a pair, pass it as a tuple (inputs, targets)"
    )
