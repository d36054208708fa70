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
    """

    is_ood: Bool[Tensor, " N"]
    p_value: Float[Tensor, " N"]
    score: Float[Tensor, " N"]

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.score)

    @classmethod
    def concat(cls, parts: list[Verdict]) -> Verdict:
        """Join the verdicts on several batches."""
        return cls(*(torch.cat([getattr(p, n) for p in parts]) for n in ("is_ood", "p_value", "score")))
