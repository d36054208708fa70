"""Which rows each rank has: rows are numbered over all ranks, those of one rank after those of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bll_pyro.ranks.draws import RowGenerator
from bll_pyro.ranks.processes import Processes
from bll_pyro.scope import generator

MOST_BYTES = 4 * 1024**3  # of rows that come to every rank


class Places:
    """The places of the own rows among those of all ranks.

    Attributes
    ----------
    ranks, sizes
        Who has rows, and how many.
    num_rows, first, num_own
        Rows of all ranks, number of the first own row, and own rows.
    """

    def __init__(self, ranks: Processes, num_own: int) -> None:
        self.ranks, self.sizes, self.num_own = ranks, ranks.gather(num_own), num_own
        self.num_rows, self.first = sum(self.sizes), sum(self.sizes[: ranks.rank])

    def generator(self, seed: int, device: torch.device) -> torch.Generator:
        """A generator for batches: it is at the same state on all ranks, and draws for rows alike."""
        if self.ranks.size == 1:
            return generator(seed, device)
        made = RowGenerator(device=device).manual_seed(seed)
        assert isinstance(made, RowGenerator)
        made.size = self.ranks.size
        return made

    def of_batch(self, batch: Tensor, random: torch.Generator) -> Tensor:
        """The own rows of a batch, by their numbers here; the generator is told of them."""
        if self.ranks.size == 1:
            return batch
        own = ((batch >= self.first) & (batch < self.first + self.num_own)).nonzero().squeeze(1)
        _tell(random, len(batch), own)
        return batch[own] - self.first

    def of_block(self, start: int, end: int, random: torch.Generator) -> slice:
        """The same of the rows between two numbers."""
        first, last = (min(max(at - self.first, 0), self.num_own) for at in (start, end))
        offset = first + self.first - start
        _tell(random, end - start, slice(offset, offset + last - first))
        return slice(first, last)

    def check_memory(self, num_bytes: int) -> None:
        """Raise a ValueError if rows of this size are too many for every rank to have all of them."""
        if self.ranks.size > 1 and num_bytes > MOST_BYTES:
            raise ValueError(
                f"ranks: expected an inference that sums over rows, or up to {MOST_BYTES / 2**30:.0f} GiB of rows for each rank, "
                f"got {num_bytes / 2**30:.1f} GiB; use bll.Exact(), bll.Laplace(), or bll.SVI() with a Gaussian guide"
            )

    def numbered(
        self, index: Tensor, read: Callable[[Tensor], Sequence[Tensor | None]]
    ) -> Sequence[Tensor | None]:
        """Tensors of the rows of all ranks with the numbers ``index [n]``, in this order, on all ranks.

        ``read`` gives them of own rows, by their numbers here.
        """
        if self.ranks.size == 1:
            return read(index)
        own = (index >= self.first) & (index < self.first + self.num_own)
        order = self.ranks.cat(own.nonzero().squeeze(1)).argsort()
        parts = read(index[own] - self.first)
        return [None if part is None else self.ranks.cat(part)[order.to(part.device)] for part in parts]


def _tell(random: torch.Generator, batch_size: int, own: Tensor | slice) -> None:
    if isinstance(random, RowGenerator):
        random.batch_size, random.own = batch_size, own
