"""Rows in one tensor or several, one after the other or side by side, indexed like one tensor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from bll_pyro.shards.shard import FileRows

Index = int | np.integer | slice | Sequence[int] | np.ndarray | Tensor


class ShardedRows:
    """The rows of `parts`, one after the other: a number gives one row, a slice or row numbers several.

    Parts are tensors, or rows of files that are read when they are asked for.
    """

    def __init__(self, parts: Sequence[Tensor | FileRows]) -> None:
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self.num_rows = self._ends[-1]

    def all(self) -> Tensor:
        """Return all rows; those of a single tensor without a copy."""
        return self.parts[0][:] if len(self.parts) == 1 else self.blocks([slice(0, self.num_rows)])

    def between(self, start: int, stop: int) -> ShardedRows:
        """The rows from one number to another, without a copy."""
        pieces = []
        for part, first, last in self._pieces(start, stop):
            pieces.append(part[first:last] if isinstance(part, Tensor) else part.between(first, last))
        return ShardedRows(pieces)

    def blocks(self, blocks: Sequence[slice]) -> Tensor:
        """The rows of some slices, one after the other, in one new tensor."""
        first = self.parts[0]
        made = torch.empty(
            (sum(block.stop - block.start for block in blocks), *first.shape[1:]),
            dtype=first.dtype,
            device=first.device,
        )
        place = 0
        for block in blocks:
            for part, start, stop in self._pieces(block.start, block.stop):
                target = made[place : place + stop - start]
                if isinstance(part, Tensor):
                    target.copy_(part[start:stop])
                else:
                    part.read_into(start, target)
                place += stop - start
        return made

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor | FileRows, int, int]]:
        """The parts in which the rows from one number to another lie, and their numbers there."""
        first = bisect_right(self._ends, start)
        for part, end in zip(self.parts[first:], self._ends[first:], strict=True):
            offset = end - len(part)
            if offset >= stop:
                return
            yield part, max(start - offset, 0), min(stop - offset, len(part))

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
        """Return rows start..stop; a view if they are in one tensor."""
        pieces = list(self._pieces(start, stop))
        if not pieces:
            return self.parts[0][:0]
        if len(pieces) == 1:
            part, first, last = pieces[0]
            return part[first:last]
        return self.blocks([slice(start, stop)])

    def _gather(self, rows: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows.to(self.parts[0].device))
        owner = torch.bucketize(rows, torch.tensor(self._ends), right=True)
        first = self.parts[0]
        result = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype, device=first.device)
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
