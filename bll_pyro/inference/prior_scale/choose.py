"""The one entry to the choice of a prior scale: by the losses of rows that were not fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bll_pyro.checkpoint.folder import kept
from bll_pyro.inference.prior_scale.criteria import Criterion
from bll_pyro.inference.prior_scale.folds import Fold, divided, fold_of
from bll_pyro.inference.prior_scale.search import HeldOutLosses, ScaleGrid, ScalePath
from bll_pyro.inference.rows import DesignRows


@runtime_checkable
class Refit[State](Protocol):
    """What the choice needs of an inference: fits at the learned scales times ``exp(x)``."""

    @property
    def scale(self) -> Tensor:
        """The learned scales of the highest evidence, ``[n]``."""
        ...

    def side_by_side(self, rows: DesignRows, held_out: Tensor) -> Callable[[list[float]], list[float]] | None:
        """Losses of all folds, nats a row, at several x at once; None where fits run one after the other."""
        ...

    def start(self, parts: list[Fold]) -> State:
        """State from which a path of fits begins."""
        ...

    def fit_at(self, parts: list[Fold], x: float, state: State) -> tuple[float, State]:
        """Fit every part at one x from a neighbour's state; return the loss of all rows, nats, and the new state."""
        ...


def choose_scale[State](
    criterion: Criterion, refit: Refit[State], rows: DesignRows, seed: int
) -> tuple[float, dict[str, Tensor]]:
    """Find the factor on the learned scales with the lowest loss of rows that were not fitted; a checkpoint keeps it.

    Parameters
    ----------
    criterion
        How the rows are held out: by folds, or one at a time.
    refit
        Fits at other scales.
    rows
        All rows.
    seed
        Seed of the folds.

    Returns
    -------
    The logarithm x of the factor, and scales and losses on the way, for the trace.
    """
    return kept("scale", partial(_searched, criterion, refit, rows, seed))


def _searched[State](
    criterion: Criterion, refit: Refit[State], rows: DesignRows, seed: int
) -> tuple[float, dict[str, Tensor]]:
    lower = math.log(smallest_scale(rows)) - float(refit.scale.log().mean())
    num_folds = criterion.num_fits
    number = fold_of(rows.num_rows, num_folds, seed) if num_folds > 1 else None
    losses_at = None if number is None else refit.side_by_side(rows, number)
    found: HeldOutLosses
    if losses_at is not None:
        found = ScaleGrid(losses_at=losses_at)
        best = found.search(lower)
    else:
        parts = [Fold(rows, None)] if number is None else divided(rows, number)

        def fit_at(x: float, state: State) -> tuple[float, State]:
            loss, state = refit.fit_at(parts, x, state)
            return loss / rows.num_rows, state

        found = ScalePath(fit_at=fit_at)
        best = found.search(refit.start(parts), lower)
    return best, found.statistics(refit.scale)


def smallest_scale(rows: DesignRows) -> float:
    """The scale at which outputs have a prior standard deviation of ``1 / sqrt(N)``.

    N rows cannot tell a smaller one from 0, and a prior that takes the weights to be 0 leaves no uncertainty.
    """
    num_features = rows.frame.num_features
    square = sum(float(design[:, :num_features].square().sum()) for design, _ in rows.blocks())
    return max(square, torch.finfo(torch.float32).tiny) ** -0.5
