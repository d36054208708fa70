"""Verdicts of a detector: whether a row is unlike the calibration rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class Verdict(Summary):
    """Verdict of a detector on N rows.

    Parameters
    ----------
    is_ood
        Whether to raise an alarm, ``[N]``.
    p_value
        Probability that a known row has such a score or a larger one, ``[N]``; conformal: for exchangeable rows it is at most
        ``a`` with probability ``a`` or less.
    score
        ``[N]``, larger is further out.
    num_calibration
        Number n of calibration rows of the detector: p-values are multiples of ``1 / (n + 1)``. None where it is not known.
    """

    is_ood: Bool[Tensor, " N"]
    p_value: Float[Tensor, " N"]
    score: Float[Tensor, " N"]
    num_calibration: int | None = None

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.score)

    @classmethod
    def concat(cls, parts: list[Verdict]) -> Verdict:
        """Join the verdicts on several batches."""
        names = ("is_ood", "p_value", "score")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, num_calibration=parts[0].num_calibration)
