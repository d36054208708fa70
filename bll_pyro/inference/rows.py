"""Rows as an inference sees them: design matrix and targets in the frame of the fit, by blocks or random batches.

Targets come with the weight and the exposure of each row, where there are any; the functions below say what a likelihood
makes of them. With weights w and exposures e of the rows (both 1 where there are none)

================================================ ==========================================
on paper                                         in code
================================================ ==========================================
``w_n log p(y_n | f_n, e_n)``                    ``log_prob``
``w_n E_q[log p(y_n | f_n, e_n)]``               ``expected_log_prob``
``w_n L_n``                                      ``information``, ``output_curvature``
================================================ ==========================================

Targets without either are plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.store import Features
from bll_pyro.frame import Frame
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.gaussian.information import Information, WeightedInformation
from bll_pyro.likelihoods import Likelihood
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


NoiseValues = dict[str, Tensor]  # the likelihood's noise parameters by site name


@dataclass(frozen=True, eq=False)
class WeightedTargets:
    """Targets ``values [n]`` or ``[n, T]``, and their columns; indexed and split like a tensor."""

    values: Tensor
    columns: Columns

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor | slice) -> WeightedTargets:
        return WeightedTargets(self.values[index], self.columns[index])

    def index_select(self, _: int, index: Tensor) -> Self:
        """Rows by number."""
        return type(self)(self.values.index_select(0, index), self.columns[index])

    def split(self, size: int) -> Iterator[WeightedTargets]:
        """Parts of ``size`` rows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


type Targets = Tensor | WeightedTargets


def with_columns(values: Tensor, columns: Columns) -> Targets:
    """Targets with their columns; the plain tensor where there are none."""
    return WeightedTargets(values, columns) if columns else values


def values_of(targets: Targets) -> Tensor:
    """The targets without their columns."""
    return targets if isinstance(targets, Tensor) else targets.values


def weight_of(targets: Targets) -> Tensor | None:
    """Weights ``[n]``; None where there are none."""
    return None if isinstance(targets, Tensor) else targets.columns.weight


def row_data(targets: Targets) -> NoiseValues:
    """The likelihood's arguments that differ between rows: ``exposure [n]``, if there is one."""
    if isinstance(targets, Tensor) or targets.columns.exposure is None:
        return {}
    return {"exposure": targets.columns.exposure}


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
        self._set(frame, device, features, design, weighted)

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
        # how many rows all of them count for
        self.total_weight = float(self.num_rows)
        # of these rows in this frame, where they are known already
        self.sums: SufficientStatistics | None = None
        if isinstance(targets, WeightedTargets):
            self.total_weight = targets.columns.total_weight(self.num_rows)

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
        """All rows in order."""
        if self._design is not None:
            for start in range(0, self.num_rows, size):
                yield self[start : start + size]
            return
        for stored, targets in self.raw_blocks(size):
            yield self.frame.design(stored), targets

    def raw_blocks(self, size: int = 8192) -> Iterator[tuple[Tensor, Targets]]:
        """All rows in order as stored features ``[B, D]`` and standardised targets."""
        start = 0
        for stored in in_order(self._features, size):
            yield stored.to(self.device), self.targets[start : start + len(stored)]
            start += len(stored)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Targets]]:
        """All rows once in random order; the last batch may be short.

        Rows of a store that are not held in memory come in the order of :meth:`bll_pyro.Features.shuffled_batches`.
        """
        if size >= self.num_rows:
            yield self[:]
            return
        if self._design is None and isinstance(self._features, Features):
            for stored, numbers in self._features.shuffled_batches(size, generator):
                yield self.frame.design(stored.to(self.device)), self.targets[numbers.to(self.device)]
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


def log_prob(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Tensor:
    """Weighted log density ``[..., n]`` in nats, given outputs ``[..., n, K]``."""
    if isinstance(targets, Tensor):
        return likelihood.log_prob(outputs, targets, **noise)
    return _weighted(
        likelihood.log_prob(outputs, targets.values, **noise, **row_data(targets)), targets.columns.weight
    )


def expected_log_prob(
    likelihood: Likelihood,
    outputs: OutputGaussian,
    targets: Targets,
    generator: torch.Generator | None,
    noise: NoiseValues,
) -> Tensor:
    """Weighted expected log density ``[n]``, nats."""
    if isinstance(targets, Tensor):
        return likelihood.expected_log_prob(outputs, targets, generator, **noise)
    expected = likelihood.expected_log_prob(outputs, targets.values, generator, **noise, **row_data(targets))
    return _weighted(expected, targets.columns.weight)


def information(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Information:
    """Weighted information of each row."""
    if isinstance(targets, Tensor):
        return likelihood.information(outputs, targets=targets, **noise)
    unweighted = likelihood.information(outputs, targets=targets.values, **noise, **row_data(targets))
    weight = targets.columns.weight
    return unweighted if weight is None else WeightedInformation(unweighted, weight)


def output_curvature(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Tensor:
    """Weighted diagonal of each row's information, ``[n, K]``."""
    if isinstance(targets, Tensor):
        return likelihood.output_curvature(outputs, targets=targets, **noise)
    curvature = likelihood.output_curvature(outputs, targets=targets.values, **noise, **row_data(targets))
    weight = targets.columns.weight
    return curvature if weight is None else weight[:, None] * curvature


def _weighted(rows: Tensor, weight: Tensor | None) -> Tensor:
    return rows if weight is None else weight * rows
