"""The search for the prior scale of the lowest held-out loss: among doublings, one after the other or side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bll_pyro.observation import Stage, stage

STEP = math.log(2.0)
MAX_STEPS = 8  # most doublings of a path, in either direction
MIN_GAIN = 2e-3  # a path ends at a doubling that lowers the loss by a smaller share
MIN_RISE = (
    0.02  # where the loss rises by a smaller share to both sides together, no scale between them is tried
)
NUM_DOUBLINGS, MAX_DOUBLINGS = (
    4,
    12,
)  # of a grid, at first and at most: upwards, since the evidence tends to small scales


@dataclass(eq=False, kw_only=True)
class HeldOutLosses:
    """Held-out losses, nats a row, at scales ``exp(x)`` times the first one; each is a step of the stage ``tried``."""

    losses: dict[float, float] = field(default_factory=dict)
    tried: Stage = field(default_factory=Stage)

    @property
    def best(self) -> float:
        """Where the loss is lowest."""
        return min(self.losses, key=self.losses.__getitem__)

    def keep(self, x: float, loss: float) -> float:
        """Keep the loss at x; infinite where the fit has no finite density."""
        self.losses[x] = loss if math.isfinite(loss) else math.inf
        self.tried.advance(nll=self.losses[x])
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
        with stage("prior scale") as self.tried:
            return self._search(lower)

    def _search(self, lower: float) -> float:
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
        with stage("prior scale") as self.tried:
            return self._search(start, lower)

    def _search(self, start: State, lower: float) -> float:
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
