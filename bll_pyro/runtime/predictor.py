"""``Predictor``: rows in, a dictionary of arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NumpyArray = NDArray[Any]


class Predictor:
    """An exported model. Several threads may call it at once.

    Attributes
    ----------
    metadata
        What the model says of itself: ``format``, ``version``, ``kind``, ``classes``, ``inputs``, ``outputs`` (name to meaning),
        ``quantiles``, ``alpha``, ``likelihood``, ``fingerprint``, ``versions``.
    """

    def __init__(
        self, run: Callable[[NumpyArray], Mapping[str, NumpyArray]], metadata: dict[str, Any]
    ) -> None:
        self._run, self.metadata = run, metadata

    def __repr__(self) -> str:
        return f"Predictor({self.metadata['likelihood']}, input_shape={self.input_shape}, outputs={list(self.outputs)})"

    @property
    def classes(self) -> list[Any] | None:
        """Labels of the classes in the order of ``probs``; None for real values and counts, and for labels [N, T]."""
        found: list[Any] | None = self.metadata["classes"]
        return found

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.metadata["inputs"]["shape"])

    @property
    def inputs(self) -> dict[str, Any]:
        """What a row is: ``shape``, ``dtype``, and ``names`` of the columns, where they have any."""
        found: dict[str, Any] = self.metadata["inputs"]
        return found

    @property
    def outputs(self) -> dict[str, str]:
        """Names of the arrays that :meth:`predict` returns, and what they mean."""
        found: dict[str, str] = self.metadata["outputs"]
        return found

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Probabilities of the last axis of ``quantiles``."""
        return tuple(self.metadata["quantiles"])

    def predict(self, rows: Any) -> dict[str, NumpyArray]:
        """Predict rows ``[N, *input_shape]``; each array of the result has N rows.

        Raises
        ------
        TypeError
            For rows that are not real numbers.
        ValueError
            For another width, no rows, NaN or infinite numbers.
        """
        return dict(self._run(self._checked(rows)))

    def _checked(self, rows: Any) -> NumpyArray:
        expected = "[N" + "".join(f", {size}" for size in self.input_shape) + "]"
        try:
            given = np.asarray(rows)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"rows: expected an array {expected}, got rows of different lengths") from error
        if given.dtype.kind not in "fiub":
            raise TypeError(
                f"rows: expected real numbers {expected}, got an array of {given.dtype}; encode them first"
            )
        if given.shape[1:] != self.input_shape or given.ndim == 0:
            remedy = "pass the columns that the model was trained on, in their order"
            if given.shape == self.input_shape:
                remedy = "a single row is rows[None]"
            raise ValueError(f"rows: expected shape {expected}, got {list(given.shape)}; {remedy}")
        if not len(given):
            raise ValueError(f"rows: expected shape {expected} with one row or more, got none")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(given, self.inputs["dtype"])
        finite = np.isfinite(values).reshape(len(values), -1).all(-1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise ValueError(
                f"rows: expected finite numbers in the range of {values.dtype}, got {int((~finite).sum())} rows with others "
                f"(first: row {first}); drop or repair these rows"
            )
        return values
