"""The prior scale of the lowest held-out loss, along a path of doublings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bll_pyro.inference.leave_one_out import leave_one_out
from bll_pyro.inference.rows import Rows
from bll_pyro.inference.targets import known_of, values_of, weight_of
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.scope import generator

STEP = math.log(2.0)
MAX_STEPS = 8  # either way
MIN_GAIN = 2e-3  # of the loss: a doubling that gains less is not followed further
NUM_POINTS = 128


@dataclass(frozen=True)
class Fold:
    """Rows that are fitted, and rows that are predicted; without the latter each row is left out by one step."""

    fitted: Rows
    held_out: Rows | None

    @torch.no_grad()
    def loss(self, posterior: GaussianPosterior) -> float:
        """Negative log predictive density of the rows that are predicted, nats, summed."""
        if self.held_out is None:
            elpd = leave_one_out(posterior, self.fitted, num_points=NUM_POINTS).elpd
            weight = weight_of(self.fitted.targets)
            return -float((elpd if weight is None else weight * elpd).sum())
        weights, likelihood = posterior.latents.marginal_weights(), posterior.layer.likelihood
        noise = {name: value[:, None] for name, value in posterior.noise(NUM_POINTS).items()}
        total = 0.0
        for design, targets in self.held_out.blocks(max(1, 4_000_000 // (NUM_POINTS * len(weights.loc)))):
            outputs = weights.outputs(design)
            log_probs = likelihood.predictive_log_prob(
                outputs, values_of(targets), NUM_POINTS, 0, **noise, **known_of(targets)
            )
            weight = weight_of(targets)
            total -= float((log_probs if weight is None else weight * log_probs).sum())
        return total


def folds(rows: Rows, num_folds: int, seed: int) -> list[Fold]:
    """Random folds of equal size; with one fold all rows are fitted, and left out one at a time."""
    if num_folds == 1:
        return [Fold(rows, None)]
    order = torch.randperm(rows.num_rows, generator=generator(seed))
    parts = [order[k::num_folds].sort().values for k in range(num_folds)]
    others = [torch.cat(parts[:k] + parts[k + 1 :]).sort().values for k in range(num_folds)]
    return [Fold(rows.take(rest), rows.take(part)) for part, rest in zip(parts, others, strict=True)]


@dataclass(eq=False)
class ScalePath[State]:
    """Fits at scales ``exp(x)`` times the first one, and the held-out loss of each, nats a row.

    ``fit_at(x, state)`` fits at x from the state of a neighbour and returns the loss and the new state.
    """

    fit_at: Callable[[float, State], tuple[float, State]]
    losses: dict[float, float] = field(default_factory=dict)
    states: dict[float, State] = field(default_factory=dict)

    def visit(self, x: float, start: State) -> float:
        """Loss at x; infinite where the fit has no finite density."""
        loss, self.states[x] = self.fit_at(x, start)
        self.losses[x] = loss if math.isfinite(loss) else math.inf
        return self.losses[x]

    def search(self, start: State, lower: float = -math.inf) -> float:
        """The best x: up by doublings as long as the loss falls, else down as far as ``lower``, then between them."""
        origin = max(0.0, lower)
        self.visit(origin, start)
        if self._walk(origin, STEP, math.inf) == origin:
            self._walk(origin, -STEP, lower)
        vertex = self._vertex()
        if vertex is not None:
            self.visit(vertex, self.states[min(self.losses, key=lambda x: abs(x - vertex))])
        return self.best

    @property
    def best(self) -> float:
        """Where the loss is lowest."""
        return min(self.losses, key=self.losses.__getitem__)

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

    def _vertex(self) -> float | None:
        """Lowest point of the parabola through the best point and its neighbours, where it is worth a visit."""
        places = sorted(x for x, loss in self.losses.items() if math.isfinite(loss))
        if not places:
            return None
        at = places.index(self.best)
        if not 0 < at < len(places) - 1:
            return None
        a, b, c = places[at - 1 : at + 2]
        down, up = self.losses[a] - self.losses[b], self.losses[c] - self.losses[b]
        if down + up <= 0.02 * abs(self.losses[b]):
            return None
        vertex = b + 0.5 * STEP * (down - up) / (down + up)
        return vertex if abs(vertex - b) > 0.25 * STEP else None

    def statistics(self, scale: Tensor) -> dict[str, Tensor]:
        """For the trace: scales ``[n]`` (geometric mean over groups) and losses ``[n]`` a row, in order."""
        places = sorted(self.losses)
        first = float(scale.double().log().mean())
        return {
            "scale_path": torch.tensor([math.exp(first + x) for x in places], dtype=torch.float64),
            "held_out_path": torch.tensor([self.losses[x] for x in places], dtype=torch.float64),
        }


def smallest_scale(rows: Rows) -> float:
    """The scale at which outputs have a prior standard deviation of ``1 / sqrt(N)``.

    N rows cannot tell a smaller one from 0, and a prior that knows the weights to be 0 knows no uncertainty.
    """
    num_features = rows.frame.num_features
    square = sum(float(design[:, :num_features].square().sum()) for design, _ in rows.blocks())
    return max(square, torch.finfo(torch.float32).tiny) ** -0.5
