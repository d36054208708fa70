"""Verdicts: is a row like those that the model knows?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector says about N rows.

    Parameters
    ----------
    is_ood
        Whether to raise an alarm, ``[N]``.
    p_value
        Chance of a known row to be at least as strange, ``[N]``; conformal, so that it is at most ``a`` for a share of ``a``
        of the known rows, or fewer.
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
