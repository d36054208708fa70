"""Rows of a sparse matrix, such as counts of words: dense batch by batch, and together where a fit needs them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bll_pyro.features.arrays import permutation, to_tensor
from bll_pyro.features.sources import Batch, InMemory
from bll_pyro.frame import as_floats


class SparseSource(InMemory):
    """Rows of a SciPy matrix in the form CSR, whose rows can be sliced."""

    def __init__(
        self, matrix: Any, what: str, targets: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        self._matrix, self._what, self._targets, self._index = matrix, what, targets, index
        self.num_rows = matrix.shape[0] if index is None else len(index)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = torch.arange(self._matrix.shape[0]) if self._index is None else self._index
        if generator is not None:
            order = order[permutation(self.num_rows, generator)]
        for rows in order.split(batch_size):
            targets = None if self._targets is None else self._targets[rows]
            yield self._dense(self._matrix[rows.numpy()]), targets

    def subset(self, index: Tensor) -> SparseSource:
        chosen = index if self._index is None else self._index[index]
        return SparseSource(self._matrix, self._what, self._targets, chosen)

    def with_targets(self, targets: Tensor) -> SparseSource:
        return SparseSource(self._matrix, self._what, targets, self._index)

    def example(self) -> Batch:
        return next(self.batches(2))

    def tensors(self) -> Batch | None:
        """All rows as a dense tensor; ValueError if it would be too large."""
        return (self._dense(self._matrix), self._targets) if self._index is None else None

    def _dense(self, matrix: Any) -> Tensor:
        return as_floats(to_tensor(matrix, self._what))
