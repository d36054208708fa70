"""Sources of rows for fitting, prediction and extraction: the interface, tensors, and stores of features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bll_pyro.features.arrays import rows_per_chunk
from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.fingerprint import DataHash
from bll_pyro.features.store import Features

Batch = tuple[Any, Tensor | None]


class Source(ABC):
    """Rows of data that fitting, prediction and extraction read in batches.

    Attributes
    ----------
    num_rows
        N, the number of rows in one pass.
    shuffled
        True if a user's DataLoader gives the rows in another order than the dataset's.
    columns
        Weights and exposures of the rows, in the order of the data.
    stored
        The store of features that the rows are, with their targets; None for other rows.
    own_order
        True if a pass ignores the generator that it is given and keeps the data's own order.
    """

    num_rows: int
    shuffled: bool = False
    columns: Columns = NO_COLUMNS
    own_order: bool = False
    stored: Features | None = None

    @property
    @abstractmethod
    def has_targets(self) -> bool:
        """Whether the rows come with targets."""

    @abstractmethod
    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield (inputs, targets) once over the data: in order, or in a permutation drawn from `generator`."""

    def batches_with_columns(
        self, batch_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        """Yield (inputs, targets, columns) like :meth:`batches`, of a source with targets."""
        order = None
        if self.columns and generator is not None and not self.own_order:
            twin = torch.Generator(generator.device)
            twin.set_state(generator.get_state())
            order = permutation(self.num_rows, twin)  # the permutation that the pass will draw
        start = 0
        for inputs, targets in self.batches(batch_size, generator=generator):
            assert targets is not None
            rows = slice(start, start + len(targets))
            yield inputs, targets, self.columns[rows if order is None else order[rows]]
            start += len(targets)

    @abstractmethod
    def example(self) -> Batch:
        """Return the first row or two as a batch, for dry runs."""

    def tensors(self) -> Batch | None:
        """Return all inputs and targets if they are tensors already, else None."""
        return None

    def scan(self) -> tuple[str, Tensor | None]:
        """Return the SHA-256 of contents, dtypes and shapes of the inputs, and the targets, in one pass.

        The SHA-256 is the same for the same inputs in any form of data, whatever their targets. Targets of shuffled rows
        cannot be matched to stored features: then the SHA-256 includes the targets, and none are returned.
        """
        digest = DataHash(ordered=not self.shuffled)
        collected: list[Tensor] = []
        for inputs, targets in self.batches(256):
            digest.update(inputs, targets if self.shuffled else None)
            if targets is not None and not self.shuffled:
                collected.append(targets)
        return digest.hexdigest(), torch.cat(collected) if collected else None


class TensorSource(Source):
    """Rows of tensors in memory, or memory-mapped; batches are slices."""

    def __init__(self, inputs: Tensor, targets: Tensor | None) -> None:
        self._inputs, self._targets = inputs, targets
        self.num_rows = len(inputs)

    @property
    def has_targets(self) -> bool:
        return self._targets is not None

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = None if generator is None else permutation(self.num_rows, generator).to(self._inputs.device)
        for start in range(0, self.num_rows, batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield self._inputs[rows], None if self._targets is None else self._targets[rows]

    def example(self) -> Batch:
        return self._inputs[:2], None if self._targets is None else self._targets[:2]

    def tensors(self) -> Batch:
        return self._inputs, self._targets

    def scan(self) -> tuple[str, Tensor | None]:
        digest = DataHash()
        for inputs, _ in self.batches(rows_per_chunk(self._inputs)):
            digest.update(inputs, None)
        return digest.hexdigest(), self._targets


class FeaturesSource(Source):
    """Rows of a store of features, gathered from its shards, with its targets or others."""

    def __init__(self, features: Features, targets: Tensor | None) -> None:
        self._features, self._targets = features, targets
        self.num_rows = features.num_rows
        self.stored = features if targets is features.targets else features.with_targets(targets)

    @property
    def has_targets(self) -> bool:
        return self._targets is not None

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = None if generator is None else permutation(self.num_rows, generator)
        for start in range(0, self.num_rows, batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield self._features[rows], None if self._targets is None else self._targets[rows]

    def example(self) -> Batch:
        return self._features[:2], None if self._targets is None else self._targets[:2]

    def tensors(self) -> Batch | None:
        return (self._features.tensor(), self._targets) if self._features.num_shards == 1 else None


def permutation(num_rows: int, generator: torch.Generator) -> Tensor:
    """Return a random order of the rows, on the CPU."""
    return torch.randperm(num_rows, generator=generator, device=generator.device).cpu()
