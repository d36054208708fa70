"""What intervals of every kind of prediction share: the kinds of intervals, and the PIT of whole numbers."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from bll_pyro.metrics import pit_discrete
from bll_pyro.scope import generator

IntervalKind = Literal["equal_tailed", "hdi"]


def check_kind(kind: str) -> str:
    """The kind of an interval, if it is one of the two."""
    if kind not in ("equal_tailed", "hdi"):
        raise ValueError(f'interval(kind=...): expected "equal_tailed" or "hdi", got {kind!r}')
    return kind


def randomised_pit(below: Float[Tensor, " *N"], at: Float[Tensor, " *N"], seed: int) -> Float[Tensor, " *N"]:
    """Uniform between ``F(y - 1)`` and ``F(y)``."""
    values = pit_discrete(below.clamp(0, 1), at.clamp(0, 1), generator(seed))
    return at.new_tensor(values)
