"""Folds of the rows: those that are fitted, and those whose density is then predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.inference.leave_one_out.leave_out import leave_one_out
from bll_pyro.inference.prior_scale.held_out import rows_at_once, total_loss
from bll_pyro.inference.row_targets import weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.scope import generator

NUM_POINTS = 128  # quasi-random points of a predictive density


@dataclass(frozen=True)
class Fold:
    """Rows that are fitted, and rows that are predicted; without the latter each row is left out by one step."""

    fitted: DesignRows
    held_out: DesignRows | None

    @torch.no_grad()
    def loss(self, posterior: GaussianPosterior, at_mode: bool = False) -> float:
        """Negative log predictive density of the rows that are predicted, nats, summed."""
        if self.held_out is None:
            elpd = leave_one_out(posterior, self.fitted, num_points=NUM_POINTS, at_mode=at_mode).elpd
            weight = weight_of(self.fitted.targets)
            return -float((elpd if weight is None else weight * elpd).sum())
        weights = posterior.latents.marginal_weights()
        noise = {name: value[:, None] for name, value in posterior.noise(NUM_POINTS).items()}
        blocks = self.held_out.blocks(rows_at_once(NUM_POINTS, len(weights.loc)))
        return total_loss(posterior.layer.likelihood, weights.outputs, blocks, noise, NUM_POINTS)


def divided(rows: DesignRows, number: Tensor) -> list[Fold]:
    """The folds of rows with the numbers ``[N]`` of theirs."""
    parts = [(number != k, number == k) for k in range(int(number.max()) + 1)]
    return [Fold(*(rows.take(mask.nonzero().squeeze(-1)) for mask in part)) for part in parts]


def fold_of(num_rows: int, num_folds: int, seed: int) -> Tensor:
    """Number of the fold of each row, ``[N]``: random, of equal size."""
    number = torch.empty(num_rows, dtype=torch.long)
    number[torch.randperm(num_rows, generator=generator(seed))] = torch.arange(num_rows) % num_folds
    return number
