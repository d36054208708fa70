"""Targets of rows, with the weight and the exposure of each row, where there are any, and what a likelihood makes of them.

With weights w and exposures e of the rows (both 1 where there are none)

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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bll_pyro.features.columns import Columns
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.gaussian.information import Information, WeightedInformation
from bll_pyro.likelihoods import Likelihood
from bll_pyro.ranks import Processes

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


def targets_of_all(targets: Targets, ranks: Processes) -> Targets:
    """The targets of all ranks, in their order."""
    if isinstance(targets, Tensor):
        return ranks.cat(targets)
    return WeightedTargets(ranks.cat(targets.values), targets.columns.of_all(ranks))


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
