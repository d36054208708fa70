"""``Data``: data with a weight or an exposure for each row, wherever the library takes data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bll_pyro.features.arrays import check_finite, to_tensor


@dataclass(frozen=True, eq=False)
class Data:
    """Data with what is known of each row beside inputs and targets.

    Every function of the library that takes data takes it in this form too; ``bll.fit(..., sample_weight=, exposure=)``
    and ``fit.predict(..., exposure=)`` are short for it.

    Parameters
    ----------
    rows
        Inputs, or inputs and targets, in any form that :func:`bll_pyro.fit` takes, in a fixed order.
    sample_weight
        ``[N]``, numbers >= 0, of which one at least is not 0: each multiplies its row's log likelihood. A whole number
        stands for so many equal rows; the standardisation counts them so too.
    exposure
        ``[N]``, or ``[N, T]`` for T counts a row, numbers > 0: time, area or population in which a row's counts were
        seen. They multiply the mean of the likelihoods of counts (``log(exposure)`` is the offset). None is 1.
    """

    rows: Any
    sample_weight: Any = None
    exposure: Any = None

    def columns(self, num_rows: int, shuffled: bool, what: str) -> Columns:
        """Check weights and exposures against the rows that they belong to."""
        if (self.sample_weight is not None or self.exposure is not None) and shuffled:
            raise ValueError(
                f"{what}: expected rows in a fixed order, which weights and exposures follow, got a DataLoader that shuffles; "
                "pass its dataset"
            )
        weight = _column(self.sample_weight, "sample_weight", num_rows, what)
        exposure = _column(self.exposure, "exposure", num_rows, what)
        if weight is not None:
            if weight.dim() != 1:
                raise ValueError(
                    f"sample_weight of {what}: expected one number for each row, shape [{num_rows}], got "
                    f"{list(weight.shape)}; the targets of a row share their weight"
                )
            _check_range(weight, weight < 0, "sample_weight", "numbers >= 0", what)
            if not bool((weight > 0).any()):
                raise ValueError(
                    f"sample_weight of {what}: expected a weight above 0, got none; look at them"
                )
        if exposure is not None:
            _check_range(exposure, exposure <= 0, "exposure", "positive numbers", what)
            exposure = exposure[:, None] if exposure.dim() == 1 else exposure
        return NO_COLUMNS if weight is None and exposure is None else Columns(weight, exposure)


@dataclass(frozen=True, eq=False)
class Columns:
    """Weights ``[N]`` and exposures ``[N, 1]`` or ``[N, T]`` of rows, checked; None where there are none."""

    weight: Tensor | None = None
    exposure: Tensor | None = None

    def __bool__(self) -> bool:
        return self.weight is not None or self.exposure is not None

    def __getitem__(self, index: slice | Tensor) -> Columns:
        """Of some rows."""
        if not self:
            return self
        return Columns(*(None if value is None else value[index] for value in (self.weight, self.exposure)))

    def to(self, like: Tensor) -> Columns:
        """On the device and in the dtype of a tensor."""
        return Columns(*(None if value is None else value.to(like) for value in (self.weight, self.exposure)))

    def total_weight(self, num_rows: int) -> float:
        """Sum of the weights: how many rows all of them count for."""
        return float(num_rows) if self.weight is None else float(self.weight.double().sum())


NO_COLUMNS = Columns()


def _column(values: Any, name: str, num_rows: int, what: str) -> Tensor | None:
    if values is None:
        return None
    column = to_tensor(values, f"{name} of {what}")
    if column.dim() not in (1, 2) or len(column) != num_rows:
        raise ValueError(
            f"{name} of {what}: expected one entry for each of the {num_rows} rows, got shape {list(column.shape)}; pass those "
            "of the same rows in the same order"
        )
    check_finite(column, f"{name} of {what}")
    return column if column.is_floating_point() else column.to(torch.get_default_dtype())


def _check_range(column: Tensor, wrong: Tensor, name: str, expected: str, what: str) -> None:
    rows = wrong.reshape(len(column), -1).any(-1)
    if bool(rows.any()):
        row = int(rows.nonzero()[0])
        raise ValueError(
            f"{name} of {what}: expected {expected}, got {column[row].tolist()} in row {row} ({int(rows.sum())} such rows); "
            "drop or repair these rows"
        )
