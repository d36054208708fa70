"""What the likelihoods of counts share: the offset of an exposure, and the mean count."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def exposed(
    outputs: Float[Tensor, "*#S N T"], exposure: Float[Tensor, "*#S N #T"] | None
) -> Float[Tensor, "*#S N T"]:
    """Log means of counts: outputs plus the offset ``log(exposure)``."""
    return outputs if exposure is None else outputs + exposure.to(outputs).log()


def log_mean(
    counts: Float[Tensor, "N T"], weight: Float[Tensor, " N"], exposure: Float[Tensor, "N #T"] | None = None
) -> Float[Tensor, " T"]:
    """Log of the mean count ``[T]`` for an exposure of 1; half a count is added, so that it is finite without counts."""
    total = weight.double() @ counts.double() + 0.5
    sizes = torch.ones_like(counts) if exposure is None else exposure.expand_as(counts)
    return (total / (weight.double() @ sizes.double() + 0.5)).log().to(weight)
