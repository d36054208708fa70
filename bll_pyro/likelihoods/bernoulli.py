"""Yes or no: one label a row, or several independent ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bll_pyro.declaration import LATER
from bll_pyro.likelihoods.counts import log_mean
from bll_pyro.likelihoods.labels import OfClasses
from bll_pyro.likelihoods.targets import float_targets


@dataclass(frozen=True, eq=False)
class Bernoulli(OfClasses):
    """Binary labels: ``y[t] ~ Bernoulli(sigmoid(f[t]))``.

    Targets are 0 or 1, or two labels of any type, of which the second one in order of sorting is the 1: ``[N]``. Or zeros and
    ones (or booleans) ``[N, T]`` for T labels a row (multilabel), which are independent given the outputs.

    Parameters
    ----------
    classes
        The two labels, that of 0 first. None (default) takes those of the training targets.
    """

    classes: Any = field(default=None, kw_only=True, metadata=LATER)
    is_binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._settled(2, 2)

    def _wanted_number(self) -> int:
        return 2

    def typical_outputs(
        self, targets: Float[Tensor, "N T"], weight: Float[Tensor, " N"], **columns: Tensor
    ) -> Float[Tensor, " T"]:
        """Log odds of the mean labels, with half a row added to each side."""
        return log_mean(targets, weight) - log_mean(1 - targets, weight)

    def check_targets(self, targets: Tensor) -> Float[Tensor, "N T"]:
        """Zeros and ones ``[N, T]``."""
        values = float_targets(targets, "Bernoulli", "labels 0 or 1")
        wrong = ((values != 0) & (values != 1)).any(-1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            is_soft = bool(((values >= 0) & (values <= 1)).all())
            remedy = "use Categorical(num_classes) for more than two classes"
            if is_soft:
                remedy = "leave label smoothing and mixup out: no row was observed so, and the ELBO would be no bound"
            raise ValueError(
                f"Bernoulli: expected labels 0 or 1, got {values[row].tolist()} in row {row} ({int(wrong.sum())} such "
                f"rows); {remedy}"
            )
        return values

    def distribution(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> dist.Distribution:
        """Independent Bernoullis over the T labels of a row."""
        return dist.Bernoulli(logits=outputs, validate_args=False).to_event(1)

    def log_prob(
        self, outputs: Float[Tensor, "*#S N T"], targets: Float[Tensor, "N T"], **noise: Tensor
    ) -> Float[Tensor, "*#S N"]:
        """``sum_t y f - log(1 + exp f)``."""
        return (targets * outputs - functional.softplus(outputs)).sum(-1)

    def label_probs(self, outputs: Float[Tensor, "*S N T"], **noise: Tensor) -> Float[Tensor, "*S N T"]:
        """Probability ``[..., N, T]`` of each label."""
        return torch.sigmoid(outputs)

    def output_curvature(self, outputs: Float[Tensor, "*S N T"], **noise: Tensor) -> Float[Tensor, "*S N T"]:
        """``p (1 - p)``."""
        probs = torch.sigmoid(outputs)
        return probs * (1 - probs)

    def expected_derivatives(
        self, draws: Float[Tensor, "S N T"], targets: Float[Tensor, "N T"], **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T T"]]:
        """``y - E[p]`` and ``diag(E[p (1 - p)])``."""
        probs = torch.sigmoid(draws)
        return targets - probs.mean(0), torch.diag_embed((probs * (1 - probs)).mean(0))
