"""The data of a fit, read and checked once: what every inference, and the training of a backbone, is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bll_pyro.features.arrays import check_finite
from bll_pyro.features.columns import Columns
from bll_pyro.features.sources import Source, TensorSource
from bll_pyro.likelihoods import Likelihood
from bll_pyro.likelihoods.base import TargetShape


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows with targets, and what the likelihood says of them.

    Parameters
    ----------
    source
        The rows as they were given.
    likelihood
        Checks targets.
    target_shape
        Shape of one target; empty for classes.
    whole
        All inputs, and all targets as the likelihood uses them, where both are in memory and were checked. None where rows come
        batch by batch: then each batch is checked when it comes.
    """

    source: Source
    likelihood: Likelihood
    target_shape: TargetShape
    whole: tuple[Tensor, Tensor] | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return self.source.num_rows

    @property
    def columns(self) -> Columns:
        """Weights and exposures of the rows."""
        return self.source.columns

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        """One pass over inputs, targets as the likelihood uses them, and columns: in order, or in a random one."""
        if self.whole is not None:
            rows = TensorSource(*self.whole)
            rows.columns = self.columns
            yield from rows.batches_with_columns(batch_size, generator=generator)
            return
        for inputs, targets, columns in self.source.batches_with_columns(batch_size, generator=generator):
            if isinstance(inputs, Tensor):
                check_finite(inputs, "inputs")
            yield inputs, self.likelihood.check_targets(targets), columns

    def all_targets(self) -> Iterator[Tensor]:
        """All targets as the likelihood uses them, in parts."""
        if self.whole is not None:
            yield self.whole[1]
            return
        for _, targets in self.source.batches(1024):
            if targets is not None:
                yield self.likelihood.check_targets(targets)
