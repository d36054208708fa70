"""Sources of rows for fitting, prediction and extraction: the interface, tensors, and stores of features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bll_pyro.classes import Classes, Labels
from bll_pyro.features.arrays import permutation
from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.fingerprint import DataHash
from bll_pyro.features.store import Features
from bll_pyro.features.tables import Table, order_of

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
    table
        Names, library and index of the data frame that the rows came in; None for other data.
    stored
        The store of features that the rows are, with their targets; None for other rows.
    own_order
        True if a pass ignores the generator that it is given and keeps the data's own order.
    own_batches
        Number of batches of a shuffled pass where the data make their own; None where the batch size decides.
    in_memory
        True if no code of the user's runs in a pass.
    generators
        Generators of the user's that a pass draws from, and that go on from pass to pass.
    classes
        What the targets are class numbers of; None where they are as they were given.
    """

    num_rows: int
    shuffled: bool = False
    columns: Columns = NO_COLUMNS
    table: Table | None = None
    own_order: bool = False
    own_batches: int | None = None
    stored: Features | None = None
    in_memory: bool = False
    generators: Sequence[torch.Generator] = ()
    classes: Classes | None = None

    @property
    @abstractmethod
    def has_targets(self) -> bool:
        """Whether the rows come with targets."""

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns of the inputs; None without names."""
        return None if self.table is None else self.table.names

    def arranged(self, names: Sequence[str] | None, what: str) -> Source:
        """The rows with the columns of these names in this order; as they are where they, or those asked for, have no names.

        ValueError if a column is missing, or there are others.
        """
        if names is None or self.table is None or self.table.names in (None, tuple(names)):
            return self
        assert self.table.names is not None
        made = self._with_inputs_at(torch.tensor(order_of(self.table.names, names, what)))
        made.columns, made.table = self.columns, replace(self.table, names=tuple(names))
        made.classes = self.classes
        return made

    def _with_inputs_at(self, order: Tensor) -> Source:
        """The rows with the columns of the inputs at these positions; of a source whose columns have names."""
        raise TypeError(f"{type(self).__name__} has no named columns")

    def all_targets(self) -> Tensor | None:
        """All targets in the order of the rows, where they are in memory; None else."""
        return None

    def labels(self) -> Tensor | Labels | None:
        """The same, of labels that are not numbers with what they are numbers of."""
        targets = self.all_targets()
        return targets if targets is None or self.classes is None else Labels(targets, self.classes)

    def changed(self, function: Callable[[Tensor], Tensor]) -> Source:
        """The same rows with a function of their targets in place of these."""
        return ChangedTargets(self, function)

    @abstractmethod
    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield (inputs, targets) once over the data: in order, or in a permutation drawn from `generator`."""

    def batches_with_columns(
        self, batch_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        """Yield (inputs, targets, columns) like :meth:`batches`, of a source with targets; see :func:`with_last_joined`."""
        order = self.coming_order(generator) if self.columns else None
        start = 0
        for inputs, targets in with_last_joined(self.batches(batch_size, generator=generator)):
            assert targets is not None
            rows = slice(start, start + len(targets))
            yield inputs, targets, self.columns[rows if order is None else order[rows]]
            start += len(targets)

    def coming_order(self, generator: torch.Generator | None) -> Tensor | None:
        """The permutation that the next pass will draw from `generator`; None where it keeps the order."""
        if generator is None or self.own_order:
            return None
        twin = torch.Generator(generator.device)
        twin.set_state(generator.get_state())
        return permutation(self.num_rows, twin)

    def subset(self, index: Tensor) -> Source | None:
        """The rows of these numbers ``[n]``, in this order, without their columns; None if rows cannot be reached by number."""
        return None

    def in_order(self) -> Source | None:
        """The same rows in the order of the numbers that :meth:`subset` takes; None if rows cannot be reached by number."""
        return self

    @abstractmethod
    def example(self) -> Batch:
        """Return the first row or two as a batch, for dry runs."""

    def varies(self) -> bool:
        """Whether its inputs are others each time that they are read, as with random augmentation."""
        return False

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


class InMemory(Source):
    """Rows in memory: all of them, or those of some numbers, with targets or without."""

    in_memory = True
    _targets: Tensor | None  # of all rows
    _index: Tensor | None  # numbers of the rows that are meant; None for all

    @property
    def has_targets(self) -> bool:
        return self._targets is not None

    def all_targets(self) -> Tensor | None:
        return self._targets if self._targets is None or self._index is None else self._targets[self._index]

    @abstractmethod
    def with_targets(self, targets: Tensor) -> InMemory:
        """The same rows with targets, which are those of all rows."""

    def changed(self, function: Callable[[Tensor], Tensor]) -> InMemory:
        assert self._targets is not None
        return self.with_targets(function(self._targets))


class ChangedTargets(Source):
    """Rows that come batch by batch, with a function of their targets."""

    def __init__(self, source: Source, function: Callable[[Tensor], Tensor]) -> None:
        self._source, self._function = source, function
        self.num_rows, self.shuffled, self.generators = source.num_rows, source.shuffled, source.generators
        self.own_order, self.own_batches = source.own_order, source.own_batches

    @property
    def has_targets(self) -> bool:
        return True

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        for inputs, targets in self._source.batches(batch_size, generator=generator):
            assert targets is not None
            yield inputs, self._function(targets)

    def subset(self, index: Tensor) -> ChangedTargets | None:
        rows = self._source.subset(index)
        return None if rows is None else ChangedTargets(rows, self._function)

    def in_order(self) -> ChangedTargets | None:
        rows = self._source.in_order()
        return None if rows is None else ChangedTargets(rows, self._function)

    def example(self) -> Batch:
        inputs, targets = self._source.example()
        assert targets is not None
        return inputs, self._function(targets)

    def varies(self) -> bool:
        return self._source.varies()


def with_last_joined(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, each of one row as part of the one before: BatchNorm cannot train on one row.

    Batches that are all of one row stay as they are, and so do inputs that cannot be joined, such as graphs.
    """
    held: Batch | None = None
    for batch in batches:
        if held is not None:
            joins = held[1] is not None and batch[1] is not None and len(batch[1]) == 1 < len(held[1])
            together = _together(held, batch) if joins else None
            if together is not None:
                held = together
                continue
            yield held
        held = batch
    if held is not None:
        yield held


def _together(first: Any, second: Any) -> Any:
    """Two batches of tensors, in tuples, lists and dictionaries, as one; None if they cannot be joined."""
    if isinstance(first, Tensor) and first.shape[1:] == second.shape[1:]:
        return torch.cat([first, second])
    if isinstance(first, Mapping):
        parts = {key: _together(value, second[key]) for key, value in first.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(first, (tuple, list)) and len(first) == len(second):  # of parts, each with all rows
        items = [_together(*pair) for pair in zip(first, second)]
        if any(item is None for item in items):
            return None
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first + second if isinstance(first, (tuple, list)) else None  # of rows


def generators_of(*owners: Any) -> list[torch.Generator]:
    """The generators of a loader and its samplers, each once."""
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
