"""The reader of all forms of data: arrays, data frames, sparse matrices, datasets, loaders, stores of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bll_pyro.classes import Labels
from bll_pyro.features.arrays import check_finite, permutation, rows_per_chunk, to_targets, to_tensor
from bll_pyro.features.columns import Data
from bll_pyro.features.fingerprint import DataHash
from bll_pyro.features.loading import DatasetSource, LoaderSource, TargetsBeside
from bll_pyro.features.rows import NamedRows, parts_of
from bll_pyro.features.sources import Batch, InMemory, Source
from bll_pyro.features.sparse import SparseSource
from bll_pyro.features.store import Features
from bll_pyro.features.tables import Table, split_off, table_of
from bll_pyro.frame import as_floats
from bll_pyro.shards.opening import MAPPED

TARGET_NAMES = ("labels", "label", "targets", "target", "y")  # of entries of dictionaries, for messages

__all__ = ["Data", "Source", "check_finite", "read"]


class TensorSource(InMemory):
    """Rows of a tensor, or of several by name, in memory or memory-mapped; batches are slices."""

    def __init__(
        self, inputs: Tensor | NamedRows, targets: Tensor | None, index: Tensor | None = None
    ) -> None:
        self._inputs, self._targets, self._index = inputs, targets, index
        self.num_rows = len(inputs) if index is None else len(index)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = self._index
        if generator is not None:
            drawn = permutation(self.num_rows, generator)
            order = drawn if order is None else order[drawn]
        order = None if order is None else order.to(self._inputs.device)
        for start in range(0, self.num_rows, batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield self._inputs[rows], None if self._targets is None else self._targets[rows]

    def subset(self, index: Tensor) -> TensorSource:
        made = TensorSource(self._inputs, self._targets, index if self._index is None else self._index[index])
        made.table = None if self.table is None else replace(self.table, index=None)  # of all rows
        return made

    def with_targets(self, targets: Tensor) -> TensorSource:
        made = TensorSource(self._inputs, targets, self._index)
        made.table = self.table
        return made

    def _with_inputs_at(self, order: Tensor) -> TensorSource:
        assert isinstance(self._inputs, Tensor)
        return TensorSource(self._inputs[:, order].contiguous(), self._targets, self._index)

    def example(self) -> Batch:
        return next(self.batches(2))

    def tensors(self) -> Batch | None:
        return (self._inputs, self._targets) if self._index is None else None

    def scan(self) -> tuple[str, Tensor | None]:
        digest = DataHash()
        size = min(rows_per_chunk(part) for part in parts_of(self._inputs, "inputs").values())
        for inputs, _ in self.batches(size):
            digest.update(inputs, None)
        return digest.hexdigest(), self.all_targets()


class FeaturesSource(InMemory):
    """Rows of a store of features, gathered from its shards, with its targets or others."""

    def __init__(self, features: Features, targets: Tensor | None, index: Tensor | None = None) -> None:
        self._features, self._targets, self._index = features, targets, index
        self.num_rows, self.shuffled = features.num_rows if index is None else len(index), features.shuffled
        self.table = None if features.feature_names is None else Table(features.feature_names)
        if index is None:
            self.stored = features if targets is features.targets else features.with_targets(targets)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = self._index
        if generator is not None:
            drawn = permutation(self.num_rows, generator)
            order = drawn if order is None else order[drawn]
        if order is None:
            start = 0
            for features in self._features.in_order(batch_size):
                rows = slice(start, start + len(features))
                yield features, None if self._targets is None else self._targets[rows]
                start = rows.stop
            return
        for index in order.split(batch_size):
            yield self._features[index], None if self._targets is None else self._targets[index]

    def subset(self, index: Tensor) -> FeaturesSource:
        chosen = index if self._index is None else self._index[index]
        return FeaturesSource(self._features, self._targets, chosen)

    def _with_inputs_at(self, order: Tensor) -> TensorSource:
        if self._features.read != MAPPED:
            raise ValueError(
                f"{self._features!r}: expected columns in the order of the fit, got another, which takes all rows into memory; "
                "open the store with read='mmap', or write it with its columns in that order"
            )
        return TensorSource(self._features.tensor()[:, order].contiguous(), self._targets, self._index)

    def example(self) -> Batch:
        first = self._index[:2] if self._index is not None else slice(0, 2)
        return self._features[first], None if self._targets is None else self._targets[first]

    def with_targets(self, targets: Tensor) -> FeaturesSource:
        return FeaturesSource(self._features, targets, self._index)

    def tensors(self) -> Batch | None:
        mapped = self._features.num_shards == 1 and self._features.read == MAPPED
        is_whole = mapped and self._index is None
        return (self._features.tensor(), self._targets) if is_whole else None


def read(
    data: Any, *, need_targets: bool, what: str = "data", min_rows: int = 1, num_workers: int = 0
) -> Source:
    """Return `data` as a source of rows; values and dtypes stay as they are.

    Parameters
    ----------
    data
        A tuple ``(inputs, targets)`` of arrays, tensors, data frames or lists, of which the targets may be labels that are
        text; one of these alone, without targets; a tuple ``(frame, name)`` of a data frame and the name of its column of
        targets; a torch Dataset with items ``(x, y)`` or ``x``; a DataLoader, whose order and batches are kept; a `Features`
        store; the last three alone or in a tuple with targets; any of these in a `Data`, with weights or exposures. Inputs may be
        a dictionary of arrays with the same rows, such as the tokens of texts and their mask. A source, which was read before,
        is returned as it is.
    need_targets
        Whether to raise a ValueError if there are no targets.
    what
        The name of the data in error messages.
    min_rows
        Smallest number of rows.
    num_workers
        Number of processes that load the items of a Dataset; a DataLoader has its own setting.

    Raises
    ------
    TypeError
        If this is not a form of data, or does not consist of numbers.
    ValueError
        If inputs and targets differ in length, targets are missing, rows are too few, their number is unknown, or a
        loader would leave some out.
    """
    source = _source(data.rows if isinstance(data, Data) else data, what, num_workers)
    if isinstance(data, Data):
        source.columns = data.columns(source.num_rows, source.shuffled, what)
    if source.num_rows < min_rows:
        rows = "row" if min_rows == 1 else "rows"
        raise ValueError(
            f"{what}: expected at least {min_rows} {rows}, got {source.num_rows}; give more data"
        )
    if need_targets and not source.has_targets:
        raise ValueError(_without_targets(source, what))
    return source


def paired(inputs: Any, targets: Any) -> Any:
    """Data of inputs and the targets that came beside them; without targets the inputs, which may have their own."""
    if targets is None:
        return inputs
    if isinstance(inputs, Data):
        return replace(inputs, rows=paired(inputs.rows, targets))
    if isinstance(inputs, tuple):
        raise ValueError(
            f"expected targets in one place, got a tuple of {len(inputs)} and targets beside it; pass (inputs, targets), or both "
            "as two arguments"
        )
    return inputs, targets


def _source(data: Any, what: str, num_workers: int) -> Source:
    if isinstance(data, Source):
        return data
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        data = tuple(data.tensors) if len(data.tensors) == 2 else data.tensors[0]
    if isinstance(data, DataLoader):
        return LoaderSource(data, what)
    if isinstance(data, Dataset):
        return DatasetSource(data, what, num_workers)
    if isinstance(data, Features):
        return FeaturesSource(data, data.targets)
    if not isinstance(data, tuple):
        return _in_memory(data, what)
    if len(data) != 2:
        raise ValueError(
            f"{what}: expected a tuple (inputs, targets), got a tuple of {len(data)}; pass inputs without targets as an "
            "array, and several inputs as a dictionary, ({'one': x1, 'two': x2}, y), or a Dataset with items ((x1, x2), y)"
        )
    inputs, targets = data
    if isinstance(targets, str):
        inputs, targets = split_off(inputs, targets, what)
    if isinstance(inputs, TensorDataset) and len(inputs.tensors) <= 2:
        inputs = inputs.tensors[0]
    if isinstance(inputs, (DataLoader, Dataset)):
        inputs = _source(inputs, what, num_workers)
    elif not isinstance(inputs, Features):
        inputs = _in_memory(inputs, f"inputs of {what}")
    if targets is not None:
        if inputs.shuffled:
            raise ValueError(
                f"{what}: expected rows in a fixed order, the order of the targets, got those of a DataLoader that shuffles and "
                "targets beside it; pass its dataset, or let its items be (x, y)"
            )
        targets = _targets(targets, f"targets of {what}")
        if inputs.num_rows != len(targets):
            raise ValueError(
                f"{what}: expected as many targets as inputs, got {inputs.num_rows} inputs and {len(targets)} targets; "
                "both need one entry per row"
            )
    values = targets.numbers if isinstance(targets, Labels) else targets
    if isinstance(inputs, Features):
        made: Source = FeaturesSource(inputs, values)
    elif values is None:
        return inputs
    else:
        made = inputs.with_targets(values) if isinstance(inputs, InMemory) else TargetsBeside(inputs, values)
    made.classes = targets.classes if isinstance(targets, Labels) else None
    return made


def _in_memory(array: Any, what: str) -> InMemory:
    """Inputs in memory: an array, a data frame, a sparse matrix, or a dictionary of arrays with the same rows."""
    if isinstance(array, Mapping):
        return TensorSource(_named(array, what), None)
    if hasattr(array, "tocsr") and array.ndim == 2:
        return SparseSource(array.tocsr(), what)
    table = table_of(array, what)
    if table is None:
        return TensorSource(_rows(array, what), None)
    # row by row, as in an array: so the last digits do not depend on how a library lays out its columns
    source = TensorSource(as_floats(to_tensor(array, what)).contiguous(), None)
    source.table = table
    return source


def _named(parts: Mapping[str, Any], what: str) -> NamedRows:
    """A dictionary of arrays with the same rows."""
    made = {str(name): _rows(value, f"{name!r} of {what}") for name, value in parts.items()}
    lengths = {name: len(part) for name, part in made.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"{what}: expected a dictionary of arrays with the same rows, got {lengths or 'an empty one'} (rows by name); give "
            "each one entry per row"
        )
    return NamedRows(made)


def _targets(array: Any, what: str) -> Tensor | Labels:
    found = to_targets(array, what)
    return found if isinstance(found, Labels) else _rows(found, what)


def _rows(array: Any, what: str) -> Tensor:
    tensor = to_tensor(array, what)
    if tensor.ndim == 0:
        raise ValueError(f"{what}: expected one entry per row, got a single number; put it into a list")
    return tensor


def _without_targets(source: Source, what: str) -> str:
    """Message about rows without targets; of items that are dictionaries it names the entry that looks like one."""
    inputs = source.example()[0]
    if not isinstance(inputs, Mapping):
        return (
            f"{what}: expected inputs and targets, got inputs alone; pass a tuple (inputs, targets), or a dataset "
            "whose items are (x, y)"
        )
    found = [name for name in inputs if str(name).lower() in TARGET_NAMES]
    name = repr(found[0]) if found else "the targets"
    return (
        f"{what}: expected items (inputs, targets), got dictionaries with {', '.join(map(repr, inputs))}; make pairs of them, in "
        f"the dataset or in collate_fn if there is one: (item, item.pop({name}))"
    )
