"""Rows as an inference sees them: design matrix and targets in the frame of the fit, by blocks or random batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.frame import Frame
from bll_pyro.inference.targets import Targets, with_columns

IN_MEMORY_BYTES = 4 * 1024**3  # a design matrix up to this size is built once
BLOCK_ROWS = 4096  # made at once
DEVICE_SHARE = 0.6  # or up to this share of what is free on the device


def in_memory_bytes(device: torch.device) -> float:
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


class DesignRows:
    """N rows of features ``[N, D]`` and targets, read as design matrix ``[B, P]`` and standardised targets.

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
    ) -> None:
        frame = frame.to(device)
        own = frame.targets(targets.to(device))
        weighted = own if columns is NO_COLUMNS else with_columns(own, columns.to(frame.center))
        num_bytes = len(features) * (frame.num_features + 1) * frame.center.element_size()
        design = None
        if num_bytes <= in_memory_bytes(torch.device(device)):
            design = frame.center.new_empty(len(features), frame.num_features + int(frame.bias))
            for start in range(
                0, len(features), BLOCK_ROWS
            ):  # in blocks: what is read again is still in the cache
                part = slice(start, start + BLOCK_ROWS)
                design[part] = frame.design(features[part].to(device))
        self._set(frame, torch.device(device), features, design, weighted)

    def _set(
        self,
        frame: Frame,
        device: torch.device,
        features: FeatureRows,
        design: Tensor | None,
        targets: Targets,
    ) -> None:
        self.frame, self.device, self._features = frame, device, features
        self._design, self.targets = design, targets
        self.num_rows = len(targets)  # N
        self.num_columns = frame.num_features + int(frame.bias)  # P

    @property
    def total_weight(self) -> float:
        """How many rows all of them count for: N without weights."""
        if isinstance(self.targets, Tensor):
            return float(self.num_rows)
        return self.targets.columns.total_weight(self.num_rows)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Targets]:
        """Design matrix and targets of some rows."""
        if self._design is not None:
            if isinstance(index, Tensor):  # several times faster than indexing
                return self._design.index_select(0, index), self.targets.index_select(0, index)
            return self._design[index], self.targets[index]
        stored = self._features[index.cpu() if isinstance(index, Tensor) else index]
        return self.frame.design(stored.to(self.device)), self.targets[index]

    def blocks(self, size: int = 8192) -> Iterator[tuple[Tensor, Targets]]:
        """All rows in order."""
        for start in range(0, self.num_rows, size):
            yield self[start : start + size]

    def raw_blocks(self, size: int = 8192) -> Iterator[tuple[Tensor, Targets]]:
        """All rows in order as stored features ``[B, D]`` and standardised targets."""
        for start in range(0, self.num_rows, size):
            rows = slice(start, start + size)
            yield self._features[rows].to(self.device), self.targets[rows]

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Targets]]:
        """All rows once in random order; the last batch may be short."""
        if size >= self.num_rows:
            yield self[:]
            return
        order = torch.randperm(self.num_rows, generator=generator, device=generator.device).to(self.device)
        for start in range(0, self.num_rows, size):
            yield self[order[start : start + size]]

    def subset(self, num_rows: int) -> DesignRows:
        """Evenly spaced rows, for warm starts and estimates."""
        return self.take(torch.linspace(0, self.num_rows - 1, min(num_rows, self.num_rows)).round().long())

    def take(self, index: Tensor) -> DesignRows:
        """Some rows, in memory; for their design matrix and targets only."""
        design, targets = self[index.to(self.device)]
        part = object.__new__(DesignRows)
        part._set(self.frame, self.device, design, design, targets)
        return part

    def rotated(self, rotation: Tensor) -> DesignRows:
        """The same rows with features ``h @ rotation``, ``rotation [D, R]``; for their design matrix and targets only."""
        part = self.take(torch.arange(self.num_rows))
        design, targets = part[:]
        num_features, frame = self.frame.num_features, self.frame
        design = torch.cat([design[:, :num_features] @ rotation, design[:, num_features:]], -1)
        own = Frame.identity(rotation.shape[1], len(frame.target_center), frame.center, frame.bias)
        own = replace(own, target_center=frame.target_center, target_scale=frame.target_scale)
        part._set(own, self.device, design, design, targets)
        return part
