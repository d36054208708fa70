"""Sources that load through torch's DataLoader, from a Dataset or from a user's own loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from bll_pyro.features.arrays import permutation
from bll_pyro.features.items import as_pair, first_item, inputs_vary
from bll_pyro.features.sources import Batch, Source, generators_of
from bll_pyro.scope import isolated


class DatasetSource(Source):
    """Items ``(x, y)`` or ``x`` of a torch Dataset, collated by torch's DataLoader."""

    def __init__(self, dataset: Dataset[Any], what: str, num_workers: int) -> None:
        self._dataset, self._what, self._num_workers = dataset, what, num_workers
        self.num_rows = _num_items(dataset, what)
        self._example: Batch | None = None

    @property
    def has_targets(self) -> bool:
        return self.example()[1] is not None

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        iterable = isinstance(self._dataset, IterableDataset)
        sampler: Sequence[int] | None = None
        if generator is not None:
            if iterable:
                raise TypeError(
                    f"{self._what}: expected a dataset with items that can be reached by index, got an IterableDataset "
                    "and a shuffled pass; shuffle inside the dataset and wrap it in a DataLoader"
                )
            sampler = permutation(self.num_rows, generator).tolist()
        # an explicit generator, because the seeds of the workers would otherwise come from torch's global state
        seeds = torch.Generator() if generator is None else generator
        loader: DataLoader[Any] = DataLoader(
            self._dataset, batch_size, sampler=sampler, num_workers=self._num_workers, generator=seeds
        )
        return _counted(_isolated_batches(loader, seeds), self.num_rows, self._what)

    def subset(self, index: Tensor) -> DatasetSource | None:
        if isinstance(self._dataset, IterableDataset):
            return None
        return DatasetSource(Subset(self._dataset, index.tolist()), self._what, self._num_workers)

    def in_order(self) -> DatasetSource | None:
        return None if isinstance(self._dataset, IterableDataset) else self

    def example(self) -> Batch:
        if self._example is None:
            self._example = first_item(self._dataset, default_collate, self._what)
        return self._example

    def varies(self) -> bool:
        return inputs_vary(self._dataset, default_collate, self._what)


class LoaderSource(Source):
    """The batches of a user's DataLoader, in its order, batch size, workers and collation.

    `num_rows` is the length of the dataset, or of the subset that a `SubsetRandomSampler` visits. The random numbers
    of a pass come from one seed, drawn from `generator` or from torch's global state, so that the number of workers
    affects neither the order of the rows nor the caller's draws between batches. With ``drop_last`` a loader that shuffles
    leaves out other rows in each pass of training, and none in any other pass.
    """

    own_order = True

    def __init__(self, loader: DataLoader[Any], what: str) -> None:
        self._loader, self._what = loader, what
        self.num_rows = _num_items(loader.dataset, what)
        sampler, batching = loader.sampler, loader.batch_sampler
        iterable = isinstance(loader.dataset, IterableDataset)
        plain = batching is None or type(batching) is BatchSampler
        inner = batching.sampler if type(batching) is BatchSampler else sampler
        self.shuffled = not (iterable or (plain and type(inner) is SequentialSampler))
        self.generators = generators_of(loader, sampler, batching, inner)
        if isinstance(inner, SubsetRandomSampler):
            self.num_rows = len(inner)
        once = isinstance(inner, RandomSampler) and not inner.replacement and len(inner) == self.num_rows
        # samplers that weight, repeat or split rows do not visit each row exactly once
        self._counted = iterable or (
            plain and (once or isinstance(inner, SubsetRandomSampler) or type(inner) is SequentialSampler)
        )
        batch_size = loader.batch_size if batching is None else getattr(batching, "batch_size", None)
        drops = loader.drop_last or getattr(batching, "drop_last", False)
        self._complete, self._num_dropped = loader, 0
        if self._counted and drops and batch_size and self.num_rows % batch_size:
            self._num_dropped = self.num_rows % batch_size
            known = type(loader) is DataLoader and batching is not None
            if not (known and self.shuffled) or self.num_rows < batch_size:
                raise ValueError(
                    f"{what}: expected a DataLoader that gives every row, or other rows in every pass, got drop_last=True, which "
                    f"loses {self._num_dropped} of {self.num_rows} rows in every pass; set drop_last=False, or shuffle=True and a "
                    "batch size of at most the number of rows"
                )
            self._complete = _rebuilt(loader, loader.dataset, inner)
        with suppress(TypeError):  # a sampler without a length
            num_rows = self.num_rows if iterable else len(inner)  # type: ignore[arg-type]
            joins = (
                plain
                and batch_size
                and not drops
                and num_rows % batch_size == 1 < min(batch_size, len(loader))
            )
            self.own_batches = len(loader) - bool(joins)  # a last batch of one row joins the one before
        self._example: Batch | None = None

    @property
    def has_targets(self) -> bool:
        return self.example()[1] is not None

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        # what a pass of training drops is drawn anew in each; every other pass needs all rows
        training = generator is not None
        pairs = _isolated_batches(self._loader if training else self._complete, generator)
        num_rows = self.num_rows - self._num_dropped * training
        return _counted(pairs, num_rows, self._what) if self._counted else pairs

    def subset(self, index: Tensor) -> LoaderSource | None:
        loader = self._loader
        if not self._has_numbers:
            return None
        rows = Subset(loader.dataset, index.tolist())
        if not isinstance(loader.sampler, RandomSampler):
            return LoaderSource(_rebuilt(loader, rows, SequentialSampler(rows)), self._what)
        drops = loader.drop_last and len(rows) >= (loader.batch_size or 0)
        sampler = RandomSampler(rows, generator=loader.sampler.generator)
        return LoaderSource(_rebuilt(loader, rows, sampler, drops), self._what)

    def in_order(self) -> LoaderSource | None:
        loader = self._loader
        if not self._has_numbers:
            return None
        ordered = _rebuilt(loader, loader.dataset, SequentialSampler(loader.dataset))  # type: ignore[arg-type]
        return LoaderSource(ordered, self._what)

    @property
    def _has_numbers(self) -> bool:
        """Whether it is torch's own loader of all rows, each once and by its number, so that one of some rows can be built."""
        loader = self._loader
        plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
        known = type(loader.sampler) in (RandomSampler, SequentialSampler)
        iterable = isinstance(loader.dataset, IterableDataset)
        return plain and known and self._counted and not iterable and loader.batch_size is not None

    def example(self) -> Batch:
        if self._example is None:
            loader = self._loader
            collated = loader.batch_sampler is not None
            self._example = first_item(loader.dataset, loader.collate_fn, self._what, collated)
        return self._example

    def varies(self) -> bool:
        loader = self._loader
        return inputs_vary(loader.dataset, loader.collate_fn, self._what, loader.batch_sampler is not None)


def _rebuilt(loader: DataLoader[Any], dataset: Any, sampler: Any, drop_last: bool = False) -> DataLoader[Any]:
    """The same loader for other rows, in another order, or without ``drop_last``."""
    batch_size = loader.batch_size or loader.batch_sampler.batch_size  # type: ignore[union-attr]
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(sampler, batch_size, drop_last=drop_last),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


class TargetsBeside(Source):
    """Rows of a dataset or loader in a fixed order, with targets that came beside them in place of their own."""

    def __init__(self, source: Source, targets: Tensor) -> None:
        self._source, self._targets = source, targets
        self.num_rows, self.own_order, self.generators = source.num_rows, source.own_order, source.generators

    @property
    def has_targets(self) -> bool:
        return True

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = self._source.coming_order(generator)
        start = 0
        for inputs, _ in self._source.batches(batch_size, generator=generator):
            rows = slice(start, start + _num_rows(inputs))
            yield inputs, self._targets[rows if order is None else order[rows]]
            start = rows.stop

    def subset(self, index: Tensor) -> TargetsBeside | None:
        rows = self._source.subset(index)
        return None if rows is None else TargetsBeside(rows, self._targets[index])

    def in_order(self) -> TargetsBeside | None:
        return None if self._source.in_order() is None else self

    def all_targets(self) -> Tensor | None:
        return self._targets

    def changed(self, function: Callable[[Tensor], Tensor]) -> TargetsBeside:
        return TargetsBeside(self._source, function(self._targets))

    def example(self) -> Batch:
        inputs, _ = self._source.example()
        return inputs, self._targets[: _num_rows(inputs)]

    def varies(self) -> bool:
        return self._source.varies()


def _num_items(dataset: Any, what: str) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{what}: expected a dataset with a length, got {type(dataset).__name__} without __len__; the likelihood is "
            "scaled to the number of rows, so give the dataset a __len__ that returns it"
        ) from error


def _isolated_batches(loader: Iterable[Any], generator: torch.Generator | None) -> Iterator[Batch]:
    """Yield batches, each loaded with its own random state.

    Without workers a loader draws random numbers in the caller's process, with workers in other processes and ahead of
    time. One seed per batch gives samplers, which draw at the start of a pass, the same numbers in both cases, and keeps
    them independent of the caller's draws between batches.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
    with isolated(seed):
        iterator = iter(loader)
        batch = next(iterator, None)
    while batch is not None:
        yield as_pair(batch, "the DataLoader")
        seed += 1
        with isolated(seed):
            batch = next(iterator, None)


def _counted(batches: Iterator[Batch], num_rows: int, what: str) -> Iterator[Batch]:
    """Yield the batches, and raise a ValueError unless they have ``num_rows`` rows in total."""
    seen = 0
    for inputs, targets in batches:
        seen += _num_rows(inputs)
        if seen > num_rows:
            break
        yield inputs, targets
    if seen != num_rows:
        raise ValueError(
            f"{what}: expected {num_rows} rows in a pass by len(dataset), got {seen}{' or more' * (seen > num_rows)}; "
            "an iterable dataset must restart in every pass and divide its rows among the workers, and len(dataset) must "
            "count rows, not batches"
        )


def _num_rows(inputs: Any) -> int:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
    return len(inputs)
