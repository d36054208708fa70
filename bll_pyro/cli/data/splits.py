"""Parts of the rows: training, validation, calibration and test, made once for a run and stored with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from bll_pyro.checks import message
from bll_pyro.cli.data.base import Opened, Rows
from bll_pyro.cli.usage import UsageError
from bll_pyro.declaration import Declaration


@dataclass(frozen=True, eq=False)
class Splits(Declaration):
    """Shares of the rows; what they leave is for training.

    Parameters
    ----------
    validation
        For early stopping, where the inference knows it.
    calibration
        For the temperature or noise factor, and for the threshold of the detector.
    test
        For the figures of quality, and for no choice.
    """

    family: ClassVar[str] = "data"
    validation: float = 0.0
    calibration: float = 0.15
    test: float = 0.2

    def __post_init__(self) -> None:
        for name in ("validation", "calibration", "test"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(message(name, "Splits", "a share from 0 to 1", value))
        if self.validation + self.calibration + self.test >= 1:
            raise ValueError(
                f"Splits: expected shares whose sum is below 1, got {self.validation} + {self.calibration} + {self.test}; the rest "
                "is for training"
            )

    def of(self, opened: Opened, seed: int) -> dict[str, Rows]:
        """Row numbers by part, each in increasing order; stratified by class, or by ranges of the value.

        Parts that the data come with are kept, and the shares are of the rows of ``train`` then.
        """
        given = dict(opened.given_parts or {})
        rest = given.get("train", np.arange(len(opened)))
        shares = {
            name: getattr(self, name) for name in ("test", "calibration", "validation") if name not in given
        }
        parts = {name: rows for name, rows in given.items() if name != "train"}
        random, num_rows = np.random.default_rng(seed), len(rest)
        for name, share in shares.items():
            taken = _stratified(opened, rest, round(share * num_rows), random)
            parts[name], rest = taken, np.setdiff1d(rest, taken)
        if not len(rest):
            raise UsageError(f"expected rows for training, got none of {len(opened)}; give smaller splits")
        return {"train": np.sort(rest), **{name: np.sort(parts[name]) for name in sorted(parts)}}


def _stratified(opened: Opened, rows: Rows, number: int, random: np.random.Generator) -> Rows:
    """``number`` of some rows: one at random of each of as many equal parts of the rows in the order of their targets."""
    order = rows[random.permutation(len(rows))]
    if opened.targets is not None:
        targets = opened.targets[order].reshape(len(order), -1).astype(np.float64)
        spread = np.maximum(targets.std(0), np.finfo(np.float64).tiny)
        order = order[np.argsort(((targets - targets.mean(0)) / spread).sum(1), kind="stable")]
    edges = np.linspace(0, len(order), number + 1).round().astype(int)
    return np.asarray([random.choice(order[a:b]) for a, b in pairwise(edges)], dtype=np.int64)
