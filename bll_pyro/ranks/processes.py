"""Processes that share rows, as a fit sees them: one process, whose sums are its own. :class:`bll_pyro.ranks.Ranks` are several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Processes:
    """One process that has all rows.

    Attributes
    ----------
    rank, size
        Number of this process, and how many there are.
    """

    rank: int = 0
    size: int = 1

    def sums(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sum over ranks of each tensor, of the same shape on all; the same numbers on all ranks."""
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest over ranks of each number of a tensor."""
        return values

    def total(self, number: float) -> float:
        """The sum of a number over ranks."""
        return number

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        return [value]

    def cat(self, rows: Tensor) -> Tensor:
        """The rows of all ranks ``[n, ...]``, as many as each has, in their order."""
        return rows

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on all ranks: where it fails on one, all stop with an error that names this rank."""
        yield


ALONE = Processes()
