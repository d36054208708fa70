"""Training of a guide on features that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.objective import Objective, StateCopy, restore, snapshot
from bll_pyro.inference.svi.train import Training, adam
from bll_pyro.optimizers import Optimizer


class FeatureTraining(Training):
    """Training of a guide on frozen features."""

    name, title = "on-features", "SVI"

    def __init__(
        self,
        objective: Objective,
        rows: DesignRows,
        batch_size: int,
        learning_rate: float,
        random: torch.Generator,
    ) -> None:
        self.objective, self.rows, self.batch_size = objective, rows, batch_size
        self.learning_rate, self.random = learning_rate, random
        if not objective.closed:
            objective.prepare(rows)

    @property
    def log_scale(self) -> float:
        """Of all rows."""
        return self.rows.log_scale

    def optimizer(self) -> Optimizer:
        """Adam."""
        return adam(self.objective.parameters, self.learning_rate)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Design matrix and targets."""
        return self.rows.batches(self.batch_size, self.random)

    def gradient(self, *batch: Any) -> Tensor:
        """Of the objective, whose mean over ranks is that of the whole batch."""
        value, ranks = self.objective.gradient(batch[0], batch[1], self.random), self.rows.ranks
        if ranks.size == 1:
            return value
        gradients = [p.grad for p in self.objective.parameters if p.grad is not None]
        value, *summed = ranks.sums(value, *gradients)
        for gradient, total in zip(gradients, summed, strict=True):
            gradient.copy_(total).div_(ranks.size)
        return value / ranks.size

    def attempt(self, *batch: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """The design matrix stands for the features."""
        return self.gradient(*batch), batch[0], self.objective.pyro_arguments(*batch)

    def state(self) -> StateCopy:
        """The parameters."""
        return snapshot(self.objective.parameters)

    def restore(self, state: StateCopy) -> None:
        """Put parameters back."""
        restore(self.objective.parameters, state)

    def extra(self) -> dict[str, Any]:
        """Buffers of the guide, which a step may change, too."""
        return {**super().extra(), "buffers": snapshot(self.objective.guide.buffers())}

    def put_extra(self, extra: dict[str, Any]) -> None:
        """Put them back."""
        super().put_extra(extra)
        restore(self.objective.guide.buffers(), extra["buffers"])
