"""Rows in one tensor or several, one after the other or side by side, indexed like one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

Index = int | np.integer | slice | Sequence[int] | np.ndarray | Tensor


class ShardedRows:
    """The rows of `parts`, one after the other: a number gives one row, a slice or row numbers several."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self.num_rows = self._ends[-1]

    def all(self) -> Tensor:
        """Return all rows; those of a single part without a copy."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    def __getitem__(self, index: Index) -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.num_rows)
            if step != 1:
                return self._gather(torch.arange(start, stop, step))
            return self._cut(start, max(start, stop))
        rows = torch.as_tensor(index)
        if rows.dtype == torch.bool:
            if rows.shape != (self.num_rows,):
                raise IndexError(f"expected a mask of shape [{self.num_rows}], got {list(rows.shape)}")
            rows = rows.nonzero().squeeze(1)
        if rows.numel() == 0:
            rows = rows.long()
        if rows.is_floating_point() or rows.ndim > 1:
            raise IndexError(f"expected row numbers, got {rows.dtype} of shape {list(rows.shape)}")
        rows = rows.to("cpu", torch.int64)
        wrong = (rows < -self.num_rows) | (rows >= self.num_rows)
        if wrong.any():
            raise IndexError(
                f"expected row numbers below {self.num_rows}, got {int(rows[wrong].reshape(-1)[0])}"
            )
        rows = rows % self.num_rows
        return self._gather(rows) if rows.ndim else self._gather(rows[None])[0]

    def _cut(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop; a view if they are in one part."""
        pieces = []
        for part, end in zip(self.parts, self._ends):
            offset = end - len(part)
            if offset < stop and start < end:
                pieces.append(part[max(start - offset, 0) : stop - offset])
        if not pieces:
            return self.parts[0][:0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _gather(self, rows: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows.to(self.parts[0].device))
        owner = torch.bucketize(rows, torch.tensor(self._ends), right=True)
        result = self.parts[0].new_empty((len(rows), *self.parts[0].shape[1:]))
        for i in owner.unique().tolist():
            in_part = owner == i
            offset = self._ends[i] - len(self.parts[i])
            result[in_part] = self.parts[i].index_select(0, rows[in_part] - offset)
        return result


class NamedRows:
    """Rows of several tensors by name, such as the tokens of texts and their mask: indexed like one, they give dictionaries.

    Parameters
    ----------
    parts
        Tensors with the same number of rows.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = dict(parts)

    @property
    def device(self) -> torch.device:
        """Where the first of them lies."""
        return next(iter(self.parts.values())).device

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, index: slice | Tensor) -> dict[str, Tensor]:
        return {name: part[index] for name, part in self.parts.items()}


def parts_of(rows: Tensor | NamedRows, what: str) -> dict[str, Tensor]:
    """The tensors that rows consist of, by their names in messages."""
    if isinstance(rows, Tensor):
        return {what: rows}
    return {f"{name!r} of {what}": part for name, part in rows.parts.items()}
