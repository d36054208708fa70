"""Conversion of tensors and arrays to checked float64 arrays, with errors that say what to change."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bll_pyro.features.arrays import to_tensor

type Values = torch.Tensor | ArrayLike
type Array = NDArray[np.float64]
type Integers = NDArray[np.int64]
type Mask = NDArray[np.bool_]

# largest deviation of a sum of probabilities from 1: a softmax in float32 (about 1e-6) passes, in bfloat16 (1e-2) not
SUM_TOLERANCE = 1e-4
# largest distance of a probability from [0, 1], which `1 - p` and averages leave by rounding
UNIT_TOLERANCE = 1e-6
# relative rounding error of a product: 100 * 0.07 = 7.000000000000001 counts as 7
ROUNDING = 1e-12


def real(name: str, values: Values, *, infinite: bool = False) -> Array:
    """Return `values` as a float64 array that is not empty and has no NaN.

    Parameters
    ----------
    name
        Name of the values in error messages.
    values
        Anything that :func:`bll_pyro.fit` takes as an array, or a number.
    infinite
        Whether infinite values are allowed.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If there are none, or one is NaN or (unless allowed) infinite.
    """
    array: Array = to_tensor(values, name).cpu().double().numpy()  # NumPy has no bfloat16
    if array.size == 0:
        raise ValueError(
            f"{name}: expected at least one value, got shape {array.shape}; pass the rows to judge"
        )
    bad = np.isnan(array) if infinite else ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        expected = "no NaN" if infinite else "finite values"
        raise ValueError(
            f"{name}: expected {expected}, got {int(bad.sum())} bad of {array.size}, the first at "
            f"index {first} ({array[first]}); remove these rows or correct their computation"
        )
    return array


def like(name: str, values: Values, shape: tuple[int, ...], *, infinite: bool = False) -> Array:
    """Return `values` as float64 in exactly `shape`; only a single number is broadcast.

    Other broadcasts are refused, because `[N, 1]` with `[N]` would silently give `[N, N]`.
    """
    array = real(name, values, infinite=infinite)
    if array.shape not in {shape, ()}:
        raise ValueError(f"{name}: expected shape {shape} (or one number), got {array.shape}; reshape it")
    return np.broadcast_to(array, shape)


def unit(name: str, values: Values) -> Array:
    """Return `values` as float64 within [0, 1]; values outside by rounding are clipped, others are an error."""
    array = real(name, values)
    low, high = float(array.min()), float(array.max())
    if low < -UNIT_TOLERANCE or high > 1 + UNIT_TOLERANCE:
        raise ValueError(
            f"{name}: expected values from 0 to 1, got {low:.6g} to {high:.6g}; "
            "logits need a softmax (classes) or a sigmoid (labels) first"
        )
    return np.asarray(np.clip(array, 0.0, 1.0))


def checked_class_probs(name: str, probs: Values) -> Array:
    """Return class probabilities `[N, K]`, K >= 2, whose rows sum to 1."""
    array = unit(name, probs)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(
            f"{name}: expected shape [rows, classes] with 2 classes or more, got {array.shape}; "
            "for the probability p of a 1 pass stack([1 - p, p], 1), or 0/1 targets of the shape of p"
        )
    excess = np.abs(array.sum(1) - 1)
    if excess.max() > SUM_TOLERANCE:
        row = int(excess.argmax())
        raise ValueError(
            f"{name}: expected rows that sum to 1 (within {SUM_TOLERANCE}), got "
            f"{array[row].sum():.6g} in row {row}; take the softmax in float32 or float64"
        )
    return array


def class_targets(targets: Values, num_rows: int, num_classes: int) -> Integers:
    """Return class numbers `[N]`, whole numbers from 0 to K - 1."""
    array = real("targets", targets)
    if array.shape != (num_rows,):
        raise ValueError(
            f"targets: expected one class number for each of {num_rows} rows, shape ({num_rows},), "
            f"got {array.shape}; one-hot rows become class numbers by argmax(1)"
        )
    bad = (array != np.floor(array)) | (array < 0) | (array >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"targets: expected whole numbers from 0 to {num_classes - 1}, got {array[row]:g} in row {row} "
            f"({int(bad.sum())} such rows); number the classes from 0 and drop rows without a label"
        )
    return array.astype(np.int64)


def probs_and_targets(probs: Values, targets: Values) -> tuple[Array, Integers]:
    """Check predictions of classes or of 0/1 labels, which are told apart by their shapes.

    Classes: `probs [N, K]` with `targets [N]`. Labels: `probs` and `targets` both `[N]` or both `[N, T]`,
    where `probs` is the probability of a 1. So labels have `probs.ndim == targets.ndim`.
    """
    p, y = unit("probs", probs), real("targets", targets)
    if p.ndim != y.ndim:
        p = checked_class_probs("probs", p)
        return p, class_targets(y, *p.shape)
    if p.shape != y.shape or p.ndim not in {1, 2}:
        raise ValueError(
            f"expected probs [rows, classes] with targets [rows], or both [rows] or both [rows, labels], "
            f"got probs {p.shape} and targets {y.shape}; predict and pass the same rows"
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"targets: expected 0 or 1 for labels (targets of the same shape {y.shape} as probs), "
            f"got {y.min():g} to {y.max():g}; for classes pass probs [rows, classes] and class numbers [rows]"
        )
    one_hot = p.ndim == 2 and p.shape[1] > 1 and bool((y.sum(1) == 1).all())
    if one_hot and np.abs(p.sum(1) - 1).max() <= SUM_TOLERANCE:
        raise ValueError(
            f"targets: expected class numbers, shape ({len(y)},), since every row of probs sums to 1; "
            f"got one-hot rows {y.shape}; pass targets.argmax(1)"
        )
    return p, y.astype(np.int64)


def matrix(name: str, values: Values, num_columns: int) -> Array:
    """Return a finite float64 matrix with `num_columns` columns."""
    array = real(name, values)
    if array.ndim != 2 or array.shape[1] != num_columns:
        hint = (
            "it looks transposed, pass its .T"
            if array.ndim == 2 and array.shape[0] == num_columns
            else f"give it one column for each of the {num_columns} classes"
        )
        raise ValueError(f"{name}: expected shape [any, {num_columns}], got {array.shape}; {hint}")
    return array


def mean_of_rows(values: Array | Mask, sample_weight: Values | None) -> float:
    """Mean over all entries of `[N, ...]`, the rows weighted by `sample_weight [N]` if it is given."""
    if sample_weight is None:
        return float(np.mean(values))
    return float(
        np.average(values.reshape(len(values), -1).mean(1), weights=row_weights(sample_weight, len(values)))
    )


def row_weights(sample_weight: Values, num_rows: int) -> Array:
    """Return weights `[N]`: numbers >= 0, at least one of them above 0."""
    array = real("sample_weight", sample_weight)
    if array.shape != (num_rows,) or array.min() < 0 or array.max() == 0:
        raise ValueError(
            f"sample_weight: expected one number >= 0 for each of {num_rows} rows, not all 0, got shape {array.shape} with values "
            f"{array.min():g} to {array.max():g}; pass the weights of the same rows"
        )
    return array


def checked_share(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1."""
    if not isinstance(value, Real) or not 0 < value < 1:
        raise ValueError(f"{name}: expected a number strictly between 0 and 1, got {value!r}; 90 % is 0.9")
    return float(value)


def at_least_one(name: str, value: int) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return value


def round_up(value: float) -> int:
    """Return the smallest whole number not below `value`, up to rounding errors of `value`."""
    return math.ceil(value * (1 - ROUNDING))
