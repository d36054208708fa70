"""Targets of a block of rows with the weight and the exposure of each, and what likelihoods say of them.

With weights w and exposures e of the rows (both 1 where there are none)

================================================ ==========================================
on paper                                         in code
================================================ ==========================================
``w_n log p(y_n | f_n, e_n)``                    ``log_prob``
``w_n E_q[log p(y_n | f_n, e_n)]``               ``expected_log_prob``
``w_n L_n``                                      ``information``, ``output_curvature``
================================================ ==========================================

Targets without either are plain tensors, and cost nothing.
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

NoiseValues = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class WeightedTargets:
    """Targets ``values`` of n rows, and their columns; cut and gathered like a tensor."""

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
    """The targets alone."""
    return targets if isinstance(targets, Tensor) else targets.values


def weight_of(targets: Targets) -> Tensor | None:
    """Weights ``[n]``; None where there are none."""
    return None if isinstance(targets, Tensor) else targets.columns.weight


def row_data(targets: Targets) -> NoiseValues:
    """What the likelihood is told of each row: its exposure, where there are any."""
    if isinstance(targets, Tensor) or targets.columns.exposure is None:
        return {}
    return {"exposure": targets.columns.exposure}


def log_prob(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Tensor:
    """Weighted log density ``[..., n]`` given outputs ``[..., n, K]``."""
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
    """Weighted expected log density ``[n]``."""
    if isinstance(targets, Tensor):
        return likelihood.expected_log_prob(outputs, targets, generator, **noise)
    expected = likelihood.expected_log_prob(outputs, targets.values, generator, **noise, **row_data(targets))
    return _weighted(expected, targets.columns.weight)


def information(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Information:
    """Weighted information of each row."""
    if isinstance(targets, Tensor):
        return likelihood.information(outputs, **noise)
    own = likelihood.information(outputs, **noise, **row_data(targets))
    weight = targets.columns.weight
    return own if weight is None else WeightedInformation(own, weight)


def output_curvature(likelihood: Likelihood, outputs: Tensor, targets: Targets, noise: NoiseValues) -> Tensor:
    """Weighted diagonal of each row's information, ``[n, K]``."""
    if isinstance(targets, Tensor):
        return likelihood.output_curvature(outputs, **noise)
    own = likelihood.output_curvature(outputs, **noise, **row_data(targets))
    return own if targets.columns.weight is None else targets.columns.weight[:, None] * own


def _weighted(rows: Tensor, weight: Tensor | None) -> Tensor:
    return rows if weight is None else weight * rows
