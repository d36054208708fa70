"""What torch's ONNX exporter does not translate, said in operators that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

MOST_COLUMNS = 64  # of a matrix that is factored column by column in a graph


def translations() -> dict[Any, Callable[..., Any]]:
    """Functions of ONNX values for ``torch.onnx.export(custom_translation_table=...)``."""
    aten = torch.ops.aten
    return {
        aten.searchsorted.Tensor: searchsorted,
        aten.median.default: lower_median,
        aten.amax.default: amax,
        aten.logsumexp.default: logsumexp,
        aten.pow.Tensor_Scalar: power,
        aten.linalg_cholesky_ex.default: cholesky_ex,
    }


def searchsorted(
    ordered: Any,
    values: Any,
    out_int32: bool = False,
    right: bool = False,
    side: Any = None,
    sorter: Any = None,
) -> Any:
    """Number of elements of ``ordered [n]`` below each value, by halving: exact, and without an array of all comparisons."""
    from onnxscript import opset20 as op

    num = int(ordered.shape[0])
    num_steps = max(1, num.bit_length())
    missing = op.ConstantOfShape(op.Constant(value_ints=[2**num_steps - num]))
    most = op.CastLike(op.Add(missing, op.Constant(value_float=math.inf)), ordered)
    padded = op.Concat(ordered, most, axis=0)
    place = op.Expand(op.Constant(value_ints=[0]), op.Shape(values))
    for step in reversed(range(num_steps)):
        seen = op.Gather(padded, op.Add(place, op.Constant(value_ints=[2**step - 1])))
        passed = op.LessOrEqual(seen, values) if right or side == "right" else op.Less(seen, values)
        place = op.Add(place, op.Mul(op.Cast(passed, to=7), op.Constant(value_ints=[2**step])))
    return op.Min(place, op.Constant(value_ints=[num]))


def lower_median(values: Any) -> Any:
    """The lower one of the middle values."""
    from onnxscript import opset20 as op

    num = math.prod(int(size) for size in values.shape)
    flat = op.Reshape(values, op.Constant(value_ints=[-1]))
    smallest, _ = op.TopK(flat, op.Constant(value_ints=[(num - 1) // 2 + 1]), largest=0)
    return op.Gather(smallest, op.Constant(value_int=(num - 1) // 2))


def amax(values: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """Largest value along axes, or of all."""
    from onnxscript import opset20 as op

    if not dim:
        return op.ReduceMax(values, keepdims=int(keepdim))
    return op.ReduceMax(values, op.Constant(value_ints=list(dim)), keepdims=int(keepdim))


def power(values: Any, exponent: float) -> Any:
    """A square is a product: onnxruntime's power of a large array takes several times as long."""
    from onnxscript import opset20 as op

    if exponent == 2:
        return op.Mul(values, values)
    return op.Pow(values, op.CastLike(op.Constant(value_float=float(exponent)), values))


def logsumexp(values: Any, dim: Sequence[int], keepdim: bool = False) -> Any:
    """By its parts: onnxruntime's own operator takes ten times as long."""
    from onnxscript import opset20 as op

    axes = op.Constant(value_ints=list(dim))
    largest = op.ReduceMax(values, axes, keepdims=1)
    finite = op.Where(op.IsInf(largest), op.CastLike(op.Constant(value_float=0.0), values), largest)
    sums = op.ReduceSum(op.Exp(op.Sub(values, finite)), axes, keepdims=1)
    found = op.Add(op.Log(sums), finite)
    return found if keepdim else op.Squeeze(found, axes)


def cholesky_ex(matrix: Any, upper: bool = False, check_errors: bool = False) -> Any:
    """Lower factor of ``[..., n, n]``, column by column, and zeros in place of the report of failures."""
    from onnxscript import opset20 as op

    num = int(matrix.shape[-1])
    if num > MOST_COLUMNS or upper:
        raise ValueError(
            f"export: expected at most {MOST_COLUMNS} outputs of a posterior that ties them by a covariance of all weights, got "
            f"{num}; export to a .pt2 file, or fit a guide without it: Diagonal(), LowRank(rank), MatrixNormal()"
        )
    rest, columns = matrix, []
    last = op.Constant(value_ints=[-1])
    for k in range(num):
        # the first k elements are zero but for rounding
        column = op.Gather(rest, op.Constant(value_ints=[k]), axis=-1)
        pivot = op.Sqrt(op.Gather(column, op.Constant(value_ints=[k]), axis=-2))
        mask = op.CastLike(op.Constant(value_floats=[float(i >= k) for i in range(num)]), matrix)
        column = op.Mul(op.Div(column, pivot), op.Unsqueeze(mask, last))
        columns.append(column)
        if k + 1 < num:
            transposed = op.Reshape(column, op.Constant(value_ints=[0] * (len(matrix.shape) - 2) + [1, num]))
            rest = op.Sub(rest, op.Mul(column, transposed))
    factor = op.Concat(*columns, axis=-1)
    failed = op.Cast(
        op.Mul(
            op.ReduceSum(matrix, op.Constant(value_ints=[-2, -1]), keepdims=0),
            op.CastLike(op.Constant(value_float=0.0), matrix),
        ),
        to=6,
    )
    return factor, failed
