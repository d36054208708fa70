"""What the likelihoods of counts share: their targets, the offset of an exposure, and the mean count."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.targets import count_targets


class Counts(Likelihood):
    """Whole numbers >= 0, one output a target: the log of its mean for an exposure of 1."""

    is_count: ClassVar[bool] = True

    def typical_outputs(
        self,
        targets: Float[Tensor, "N T"],
        weight: Float[Tensor, " N"],
        exposure: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, " T"]:
        """Logs of the mean counts."""
        return log_mean(targets, weight, exposure)

    def check_targets(self, targets: Tensor) -> Float[Tensor, "N T"]:
        """Counts ``[N, T]`` as floats."""
        return count_targets(targets, type(self).__name__)


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
