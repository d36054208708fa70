"""The prior scale of the lowest held-out loss, among doublings: one after the other, or side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bll_pyro.inference.leave_one_out.leave_out import leave_one_out
from bll_pyro.inference.prior_scale.held_out import rows_at_once, total_loss
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.targets import weight_of
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.scope import generator

STEP = math.log(2.0)
MAX_STEPS = 8  # either way
MIN_GAIN = 2e-3  # of the loss: a doubling that gains less is not followed further
MIN_RISE = 0.02  # of the loss, to both sides together: where it is flatter a visit between them is not worth its time
NUM_DOUBLINGS, MAX_DOUBLINGS = 4, 12  # upwards at first: the evidence's scale is too small, if anything
NUM_POINTS = 128


@dataclass(frozen=True)
class Fold:
    """Rows that are fitted, and rows that are predicted; without the latter each row is left out by one step."""

    fitted: DesignRows
    held_out: DesignRows | None

    @torch.no_grad()
    def loss(self, posterior: GaussianPosterior) -> float:
        """Negative log predictive density of the rows that are predicted, nats, summed."""
        if self.held_out is None:
            elpd = leave_one_out(posterior, self.fitted, num_points=NUM_POINTS).elpd
            weight = weight_of(self.fitted.targets)
            return -float((elpd if weight is None else weight * elpd).sum())
        weights = posterior.latents.marginal_weights()
        noise = {name: value[:, None] for name, value in posterior.noise(NUM_POINTS).items()}
        blocks = self.held_out.blocks(rows_at_once(NUM_POINTS, len(weights.loc)))
        return total_loss(posterior.layer.likelihood, weights.outputs, blocks, noise, NUM_POINTS)


def folds(rows: DesignRows, num_folds: int, seed: int) -> list[Fold]:
    """Random folds of equal size; with one fold all rows are fitted, and left out one at a time."""
    if num_folds == 1:
        return [Fold(rows, None)]
    return divided(rows, fold_of(rows.num_rows, num_folds, seed))


def divided(rows: DesignRows, number: Tensor) -> list[Fold]:
    """The folds of rows with the numbers ``[N]`` of theirs."""
    parts = [(number != k, number == k) for k in range(int(number.max()) + 1)]
    return [Fold(*(rows.take(mask.nonzero().squeeze(-1)) for mask in part)) for part in parts]


def fold_of(num_rows: int, num_folds: int, seed: int) -> Tensor:
    """Number of the fold of each row, ``[N]``: random, of equal size."""
    number = torch.empty(num_rows, dtype=torch.long)
    number[torch.randperm(num_rows, generator=generator(seed))] = torch.arange(num_rows) % num_folds
    return number


@dataclass(eq=False, kw_only=True)
class HeldOutLosses:
    """Held-out losses, nats a row, at scales ``exp(x)`` times the first one."""

    losses: dict[float, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Where the loss is lowest."""
        return min(self.losses, key=self.losses.__getitem__)

    def keep(self, x: float, loss: float) -> float:
        """Keep the loss at x; infinite where the fit has no finite density."""
        self.losses[x] = loss if math.isfinite(loss) else math.inf
        return self.losses[x]

    def vertex(self, least: float) -> float | None:
        """Lowest point of the parabola through the best point and its neighbours, which rise by a share ``least`` of its loss.

        None where there is none, or the best point is as good.
        """
        places = sorted(x for x, loss in self.losses.items() if math.isfinite(loss))
        if not places:
            return None
        at = places.index(self.best)
        if not 0 < at < len(places) - 1:
            return None
        a, b, c = places[at - 1 : at + 2]
        down = (self.losses[a] - self.losses[b]) / (b - a)
        up = (self.losses[c] - self.losses[b]) / (c - b)
        if STEP * (down + up) <= least * abs(self.losses[b]):
            return None
        # the slope of the parabola is -down in the middle of a and b, and up in the middle of b and c
        vertex = (a + b) / 2 + down / (down + up) * (c - a) / 2
        return vertex if abs(vertex - b) > 0.25 * STEP else None

    def statistics(self, scale: Tensor) -> dict[str, Tensor]:
        """For the trace: scales ``[n]`` (geometric mean over groups) and losses ``[n]`` a row, in order."""
        places = sorted(self.losses)
        first = float(scale.double().log().mean())
        return {
            "scale_path": torch.tensor([math.exp(first + x) for x in places], dtype=torch.float64),
            "held_out_path": torch.tensor([self.losses[x] for x in places], dtype=torch.float64),
        }


@dataclass(eq=False, kw_only=True)
class ScaleGrid(HeldOutLosses):
    """The best of many scales that are fitted side by side: ``losses_at(xs)`` fits at several places at once."""

    losses_at: Callable[[list[float]], list[float]]

    def search(self, lower: float = -math.inf) -> float:
        """The best x: among doublings, more of them where it is the outermost, then between its neighbours."""
        places = [x * STEP for x in range(NUM_DOUBLINGS)]
        while places:
            inside = sorted({max(x, lower) for x in places} - set(self.losses))
            for x, loss in zip(inside, self.losses_at(inside) if inside else [], strict=True):
                self.keep(x, loss)
            low, high = min(self.losses), max(self.losses)
            places = []
            if len(self.losses) < MAX_DOUBLINGS and self.best == high:
                places = [high + STEP]
            elif len(self.losses) < MAX_DOUBLINGS and self.best == low > lower:
                places = [low - STEP]
        if not math.isfinite(self.losses[self.best]):
            return max(0.0, lower)
        vertex = self.vertex(0.0)
        return self.best if vertex is None else vertex


@dataclass(eq=False, kw_only=True)
class ScalePath[State](HeldOutLosses):
    """Fits at one scale after the other: ``fit_at(x, state)`` starts at a neighbour's state, and returns loss and new state."""

    fit_at: Callable[[float, State], tuple[float, State]]
    states: dict[float, State] = field(default_factory=dict)

    def visit(self, x: float, start: State) -> float:
        """Loss at x."""
        loss, self.states[x] = self.fit_at(x, start)
        return self.keep(x, loss)

    def search(self, start: State, lower: float = -math.inf) -> float:
        """The best x: up by doublings as long as the loss falls, else down as far as ``lower``, then between them."""
        origin = max(0.0, lower)
        self.visit(origin, start)
        if self._walk(origin, STEP, math.inf) == origin:
            self._walk(origin, -STEP, lower)
        vertex = self.vertex(MIN_RISE)
        if vertex is not None:
            self.visit(vertex, self.states[min(self.losses, key=lambda x: abs(x - vertex))])
        return self.best

    def _walk(self, origin: float, step: float, end: float) -> float:
        x = origin
        for _ in range(MAX_STEPS):
            beyond = x + step
            if (beyond - end) * step > 0:
                break
            loss = self.visit(beyond, self.states[x])
            if not loss < self.losses[x]:
                break
            gain, x = self.losses[x] - loss, beyond
            if gain < MIN_GAIN * abs(loss):
                break
        return x


def smallest_scale(rows: DesignRows) -> float:
    """The scale at which outputs have a prior standard deviation of ``1 / sqrt(N)``.

    N rows cannot tell a smaller one from 0, and a prior that knows the weights to be 0 knows no uncertainty.
    """
    num_features = rows.frame.num_features
    square = sum(float(design[:, :num_features].square().sum()) for design, _ in rows.blocks())
    return max(square, torch.finfo(torch.float32).tiny) ** -0.5
