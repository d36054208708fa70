"""Rows as an inference sees them: design matrix and targets in the frame of the fit, by blocks or random batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.store import Features
from bll_pyro.frame import Frame
from bll_pyro.inference.row_targets import Targets, WeightedTargets, targets_of_all, values_of, with_columns
from bll_pyro.ranks import ALONE, Places, Processes
from bll_pyro.shards.opening import AHEAD

if TYPE_CHECKING:
    from bll_pyro.inference.exact.statistics import SufficientStatistics

IN_MEMORY_BYTES = 4 * 1024**3  # a design matrix up to this size is built once
BLOCK_ROWS = 4096  # made at once
DEVICE_SHARE = 0.6  # or up to this share of what is free on the device


def in_device_memory(device: torch.device) -> float:
    """Size up to which the design matrix is kept where it is used."""
    if device.type == "cuda":
        return max(IN_MEMORY_BYTES, DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
    return IN_MEMORY_BYTES


@runtime_checkable
class FeatureRows(Protocol):
    """What rows are read from: a ``Features`` store, or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, index: Tensor | slice) -> Tensor: ...

    def __len__(self) -> int: ...


def is_streamed(features: FeatureRows) -> bool:
    """Whether rows are those of a store that is read ahead, of which nothing is held in memory whatever its size."""
    return isinstance(features, Features) and features.read == AHEAD


def in_order(features: FeatureRows, size: int) -> Iterator[Tensor]:
    """Features in order, ``size`` rows at a time."""
    if isinstance(features, Features):
        yield from features.in_order(size)
        return
    for start in range(0, len(features), size):
        yield features[start : start + size]


class DesignRows:
    """N rows of features ``[N, D]`` and targets, read as design matrix ``[B, P]`` and standardised targets.

    ``ranks`` may share them: each has ``num_own`` of the N rows, which are numbered over all ranks. Blocks and slices are of the
    own rows, and what is summed over rows goes through ``ranks.sums``. Rows that are taken by number come to all ranks.

    A design matrix that fits in memory is built once, so that a training step only gathers rows; a larger one is made
    batch by batch from the stored features. Rows with weights or exposures have them with their targets.
    """

    def __init__(
        self,
        features: FeatureRows,
        targets: Tensor,
        frame: Frame,
        device: torch.device | str = "cpu",
        columns: Columns = NO_COLUMNS,
        ranks: Processes = ALONE,
    ) -> None:
        frame = frame.to(device)
        own = frame.targets(targets.to(device))
        weighted = own if columns is NO_COLUMNS else with_columns(own, columns.to(frame.center))
        num_bytes = len(features) * (frame.num_features + 1) * frame.center.element_size()
        design = None
        device = torch.device(device)
        if not is_streamed(features) and num_bytes <= (
            IN_MEMORY_BYTES if device.type == "cpu" else in_device_memory(device)
        ):
            design = frame.center.new_empty(len(features), frame.num_features + int(frame.bias))
            for start in range(
                0, len(features), BLOCK_ROWS
            ):  # in blocks: what is read again is still in the cache
                part = slice(start, start + BLOCK_ROWS)
                design[part] = frame.design(features[part].to(device))
        self._set(frame, device, features, design, weighted, ranks)

    def _set(
        self,
        frame: Frame,
        device: torch.device,
        features: FeatureRows,
        design: Tensor | None,
        targets: Targets,
        ranks: Processes = ALONE,
    ) -> None:
        self.frame, self.device, self._features = frame, device, features
        self._design, self.targets = design, targets
        self.ranks, self.places = ranks, Places(ranks, len(targets))
        self.num_rows, self.num_own = self.places.num_rows, len(targets)  # N, of all ranks
        self.num_columns = frame.num_features + int(frame.bias)  # P
        # how many rows all of them count for
        self.total_weight = float(self.num_rows)
        # of the own rows in this frame, where they are known already
        self.sums: SufficientStatistics | None = None
        if isinstance(targets, WeightedTargets):
            self.total_weight = ranks.total(targets.columns.total_weight(self.num_own))

    @property
    def log_scale(self) -> float:
        """What a log density of all targets, in nats, is less in the user's units."""
        return self.total_weight * self.frame.log_target_scale

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Targets]:
        """Design matrix and targets of some rows."""
        if self._design is not None:
            if isinstance(index, Tensor):  # several times faster than indexing
                return self._design.index_select(0, index), self.targets.index_select(0, index)
            return self._design[index], self.targets[index]
        stored = self._features[index.cpu() if isinstance(index, Tensor) else index]
        return self.frame.design(stored.to(self.device)), self.targets[index]

    def blocks(self, size: int = 8192) -> Iterator[tuple[Tensor, Targets]]:
        """All own rows in order."""
        if self._design is not None:
            for start in range(0, self.num_own, size):
                yield self[start : start + size]
            return
        for stored, targets in self.raw_blocks(size):
            yield self.frame.design(stored), targets

    def raw_blocks(self, size: int = 8192) -> Iterator[tuple[Tensor, Targets]]:
        """All own rows in order as stored features ``[B, D]`` and standardised targets."""
        start = 0
        for stored in in_order(self._features, size):
            yield stored.to(self.device), self.targets[start : start + len(stored)]
            start += len(stored)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Targets]]:
        """The rows of all ranks once in random order, of each batch the own ones; the last batch may be short.

        Rows of a store that are not held in memory, and that no other rank shares, come in the order of
        :meth:`bll_pyro.Features.shuffled_batches`.
        """
        if size >= self.num_rows:
            yield self[self.places.of_block(0, self.num_rows, generator)]
            return
        if self._design is None and isinstance(self._features, Features) and self.ranks.size == 1:
            for stored, numbers in self._features.shuffled_batches(size, generator):
                yield self.frame.design(stored.to(self.device)), self.targets[numbers.to(self.device)]
            return
        order = torch.randperm(self.num_rows, generator=generator, device=generator.device).to(self.device)
        for start in range(0, self.num_rows, size):
            yield self[self.places.of_batch(order[start : start + size], generator)]

    def blocks_of_all(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Targets, int]]:
        """The own rows of blocks of the rows of all ranks in order, each with the number of rows of its block."""
        for start in range(0, self.num_rows, size):
            end = min(start + size, self.num_rows)
            yield *self[self.places.of_block(start, end, generator)], end - start

    def subset(self, num_rows: int) -> DesignRows:
        """Evenly spaced rows, for warm starts and estimates."""
        number = min(num_rows, self.num_rows)
        return self.take(torch.linspace(0, self.num_rows - 1, number, dtype=torch.float64).round().long())

    def take(self, index: Tensor) -> DesignRows:
        """Some rows of all ranks by number, in memory on each of them; for their design matrix and targets only."""
        design, targets = self._taken(index.to(self.device))
        part = object.__new__(DesignRows)
        part._set(self.frame, self.device, design, design, targets)
        return part

    def rotated(self, rotation: Tensor) -> DesignRows:
        """The same rows with features ``h @ rotation``, ``rotation [D, R]``; for their design matrix and targets only."""
        design, targets = self[:]
        num_features, frame = self.frame.num_features, self.frame
        design = torch.cat([design[:, :num_features] @ rotation, design[:, num_features:]], -1)
        own = Frame.identity(rotation.shape[1], len(frame.target_center), frame.center, frame.bias)
        own = replace(own, target_center=frame.target_center, target_scale=frame.target_scale)
        part = object.__new__(DesignRows)
        part._set(own, self.device, design, design, targets, self.ranks)
        return part

    def gathered(self) -> DesignRows:
        """All rows on each rank; ValueError if they are too many for that."""
        self.places.check_memory(self.num_rows * self.num_columns * self.frame.center.element_size())
        return self if self.ranks.size == 1 else self.take(torch.arange(self.num_rows))

    @cached_property
    def all_targets(self) -> Targets:
        """The targets of the rows of all ranks."""
        return targets_of_all(self.targets, self.ranks)

    def _taken(self, index: Tensor) -> tuple[Tensor, Targets]:
        """Design matrix and targets of the rows of all ranks with these numbers, in their order."""

        def read(own: Tensor) -> list[Tensor | None]:
            design, targets = self[own]
            columns = NO_COLUMNS if isinstance(targets, Tensor) else targets.columns
            return [design, values_of(targets), columns.weight, columns.exposure]

        design, values, *columns = self.places.numbered(index, read)
        assert design is not None and values is not None
        return design, with_columns(values, Columns(*columns))
