"""``Data``: data with a weight or an exposure for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import is_number
from bll_pyro.classes import Labels
from bll_pyro.features.arrays import check_finite, to_targets, to_tensor
from bll_pyro.frame import as_floats
from bll_pyro.ranks import Processes
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class Data(Summary):
    """Data with a weight or an exposure for each row.

    Every function of the library that takes data also takes this; ``bll.fit(..., sample_weight=, exposure=)`` and
    ``fit.predict(..., exposure=)`` are short forms.

    Parameters
    ----------
    rows
        Inputs, or inputs and targets, in any form that :func:`bll_pyro.fit` takes, in a fixed order.
    sample_weight
        ``[N]``, numbers >= 0, at least one above 0: each multiplies its row's log likelihood, so that a whole number n is
        equivalent to n equal rows, also in the standardisation.
    exposure
        ``[N]``, or ``[N, T]`` for T counts per row, numbers > 0: time, area or population in which the counts were
        observed. They multiply the mean of the likelihoods of counts (``log(exposure)`` is the offset). None means 1.
    """

    rows: Any
    sample_weight: Any = None
    exposure: Any = None

    def columns(self, num_rows: int, shuffled: bool, what: str) -> Columns:
        """The checked weights and exposures of ``num_rows`` rows; ValueError if they do not match."""
        if (self.sample_weight is not None or self.exposure is not None) and shuffled:
            raise ValueError(
                f"{what}: expected rows in a fixed order, the order of weights and exposures, got a DataLoader that shuffles; "
                "pass its dataset"
            )
        weight = _column(self.sample_weight, "sample_weight", num_rows, what)
        exposure = _column(self.exposure, "exposure", num_rows, what)
        if weight is not None:
            if weight.dim() != 1:
                raise ValueError(
                    f"sample_weight of {what}: expected one number for each row, shape [{num_rows}], got "
                    f"{list(weight.shape)}; all targets of a row share one weight"
                )
            _check_range(weight, weight < 0, "sample_weight", "numbers >= 0", what)
            if not bool((weight > 0).any()):
                raise ValueError(
                    f"sample_weight of {what}: expected at least one weight above 0, got none; check the weights"
                )
        if exposure is not None:
            _check_range(exposure, exposure <= 0, "exposure", "positive numbers", what)
            exposure = exposure[:, None] if exposure.dim() == 1 else exposure
        return NO_COLUMNS if weight is None and exposure is None else Columns(weight, exposure)


@dataclass(frozen=True, eq=False)
class Columns(Summary):
    """Checked weights ``[N]`` and exposures ``[N, 1]`` or ``[N, T]`` of rows; None if there are none."""

    weight: Tensor | None = None
    exposure: Tensor | None = None

    def __bool__(self) -> bool:
        return self.weight is not None or self.exposure is not None

    def __getitem__(self, index: slice | Tensor) -> Columns:
        """The columns of some rows."""
        if not self:
            return self
        return Columns(*(None if value is None else value[index] for value in (self.weight, self.exposure)))

    def to(self, like: Tensor) -> Columns:
        """The columns on the device and in the dtype of a tensor."""
        return Columns(*(None if value is None else value.to(like) for value in (self.weight, self.exposure)))

    def total_weight(self, num_rows: int) -> float:
        """Sum of the weights, or ``num_rows`` without weights."""
        return float(num_rows) if self.weight is None else float(self.weight.double().sum())

    def of_all(self, ranks: Processes) -> Columns:
        """The columns of the rows of all ranks."""
        columns = (None if value is None else ranks.cat(value) for value in (self.weight, self.exposure))
        return Columns(*columns) if self else self

    def refused(self, owner: str, weight: str = "", exposure: str = "") -> None:
        """Raise a ValueError, with the reason, if there are weights or exposures that ``owner`` cannot use."""
        for name, value, reason in (
            ("sample_weight", self.weight, weight),
            ("exposure", self.exposure, exposure),
        ):
            if value is not None and reason:
                raise ValueError(f"{owner}: expected rows without {name}, got {len(value)} of them; {reason}")


NO_COLUMNS = Columns()


def class_weights(labels: Any, by_class: Mapping[Any, float] | None = None) -> Float[Tensor, " N"]:
    """The weight of each row by its class, for ``sample_weight``: by default one with which all classes count alike.

    The default is ``N / (C n_c)`` for a row of a class with n_c of the N rows, where C classes occur; the weights add up to N. A
    fit with them is that of a population in which the classes are equally frequent, and so are its probabilities: for those of
    the data as they are, leave the weights out, and weigh decisions by their costs instead
    (:func:`bll_pyro.prediction.decide`).

    Parameters
    ----------
    labels
        Labels ``[N]``, text or whole numbers, in any form of an array.
    by_class
        A weight for each label that occurs, numbers >= 0, in place of the default.

    Returns
    -------
    Tensor
        Weights ``[N]``, float32.

    Raises
    ------
    ValueError
        If labels are neither text nor whole numbers ``[N]``, or a class has no weight.
    """
    given = to_targets(labels, "labels")
    values = given.numbers if isinstance(given, Labels) else given
    if (
        values.dim() != 1
        or not len(values)
        or (values.is_floating_point() and bool((values != values.round()).any()))
    ):
        raise ValueError(
            f"class_weights: expected labels [N], whole numbers, got {values.dtype} of shape {list(values.shape)}"
        )
    numbers, index, counts = values.long().unique(return_inverse=True, return_counts=True)
    classes = [
        given.classes.labels[number] if isinstance(given, Labels) else number for number in numbers.tolist()
    ]
    if by_class is None:
        return (len(values) / (len(classes) * counts.double())).float()[index]
    missing = [label for label in classes if label not in by_class]
    wrong = {label: w for label, w in by_class.items() if not is_number(w, -1.0) or w < 0}
    if missing or wrong:
        got = f"none for {missing}" if missing else f"{wrong}"
        raise ValueError(
            f"class_weights(by_class=...): expected a number >= 0 for each class, got {got}; add them"
        )
    return torch.tensor([float(by_class[label]) for label in classes])[index]


def bundled(data: Any, sample_weight: Any, exposure: Any) -> Any:
    """Data with the weights and exposures that came beside it."""
    if sample_weight is None and exposure is None:
        return data
    if isinstance(data, Data):
        raise ValueError(
            "expected weights and exposures in one place, got a bll.Data and sample_weight or exposure beside it; put all into "
            "bll.Data(rows, sample_weight=..., exposure=...)"
        )
    return Data(data, sample_weight, exposure)


def _column(values: Any, name: str, num_rows: int, what: str) -> Tensor | None:
    if values is None:
        return None
    column = to_tensor(values, f"{name} of {what}")
    if column.dim() not in (1, 2) or len(column) != num_rows:
        raise ValueError(
            f"{name} of {what}: expected one entry for each of the {num_rows} rows, got shape {list(column.shape)}; pass the "
            "entries of the same rows in the same order"
        )
    check_finite(column, f"{name} of {what}")
    return as_floats(column)


def _check_range(column: Tensor, wrong: Tensor, name: str, expected: str, what: str) -> None:
    rows = wrong.flatten(1).any(-1) if wrong.dim() > 1 else wrong
    if bool(rows.any()):
        row = int(rows.nonzero()[0])
        raise ValueError(
            f"{name} of {what}: expected {expected}, got {column[row].tolist()} in row {row} ({int(rows.sum())} such rows); "
            "drop or repair these rows"
        )
