"""Classes: the softmax likelihood."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bll_pyro.checks import positive
from bll_pyro.declaration import LATER
from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.gaussian.information import SoftmaxInformation
from bll_pyro.gaussian.points import joined
from bll_pyro.gaussian.softmax_moments import (
    BITS,
    MAX_LOG_ODDS,
    independent_softmax_moments,
    log_mean_softmax,
    softmax_moments,
)
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.likelihoods.labels import OfClasses
from bll_pyro.likelihoods.targets import integer_targets


@dataclass(frozen=True, eq=False)
class Categorical(OfClasses):
    """Class labels: ``y ~ Categorical(softmax(f / temperature))``.

    Parameters
    ----------
    num_classes
        Number of classes K. None takes those of the training targets.
    temperature
        Softmax temperature: larger is less certain. (Not the temperature of a cold posterior.)
    classes
        Labels of the classes, in the order of outputs and probabilities: text, booleans or whole numbers. Needed where a class
        has no row in the training data, and in place of ``num_classes``. None (default): whole numbers from 0 to K - 1, or, where
        the training targets have K other labels, these in the order of sorting.
    """

    num_classes: int | None = None
    temperature: float = 1.0
    classes: Any = field(default=None, kw_only=True, metadata=LATER)
    is_discrete: ClassVar[bool] = True
    has_slope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_classes", self._settled(self.num_classes, 2))
        positive(self.temperature, "temperature", "Categorical")

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output for each class."""
        return self._known_number()

    def check_targets(self, targets: Tensor) -> Int[Tensor, " N"]:
        """Labels ``[N]``, int64."""
        return integer_targets(targets, self._known_number(), "Categorical")

    def distribution(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Categorical:
        """Categorical with logits ``f / temperature``."""
        return dist.Categorical(logits=outputs / self.temperature, validate_args=False)

    def log_prob(
        self, outputs: Float[Tensor, "*#S N K"], targets: Int[Tensor, " N"], **noise: Tensor
    ) -> Float[Tensor, "*#S N"]:
        """Log probability ``[..., N]`` of labels ``[N]``; cross entropy is much faster than the distribution."""
        logits = outputs if self.temperature == 1.0 else outputs / self.temperature
        if logits.dim() == 2:
            return -functional.cross_entropy(logits, targets, reduction="none")
        if logits.shape[-1] == 2:  # a sum over two is many times faster as a difference
            return functional.logsigmoid((logits[..., 1] - logits[..., 0]) * (2 * targets - 1))
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(-1, targets.expand(log_probs.shape[:-1])[..., None]).squeeze(-1)

    @property
    def is_contrast(self) -> bool:
        """Whether the labels depend on one number a row, ``(f_1 - f_0) / temperature``: there are two classes."""
        return self.num_classes == 2

    def contrast(self, outputs: OutputGaussian) -> OutputGaussian:
        """That number for independent outputs ``[N, 2]``, as the log odds of a Bernoulli ``[N, 1]``."""
        loc = outputs.loc[:, 1:] - outputs.loc[:, :1]
        return OutputGaussian(
            loc / self.temperature, outputs.variance.sum(1, keepdim=True).sqrt() / self.temperature
        )

    def slope(
        self, outputs: Float[Tensor, "*S N K"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "*S N"], Float[Tensor, "*S N K"]]:
        """Log probability and its gradient, ``(e_y - p) / temperature``."""
        logits = outputs if self.temperature == 1.0 else outputs / self.temperature
        log_probs = logits.log_softmax(-1)
        chosen = targets.expand(log_probs.shape[:-1])[..., None]
        values = log_probs.gather(-1, chosen).squeeze(-1)
        slopes = log_probs.exp_().neg_()
        slopes.scatter_add_(-1, chosen, slopes.new_ones(()).expand(chosen.shape))
        return values, slopes if self.temperature == 1.0 else slopes.div_(self.temperature)

    def predictive_log_prob(
        self, outputs: Outputs, targets: Int[Tensor, " N"], num_points: int, seed: int = 0, **noise: Tensor
    ) -> Float[Tensor, " N"]:
        """``log E[p(y | f)]`` of each row, ``[N]``."""
        draws = outputs.draws_by_output(num_points, seed)
        return log_mean_softmax(draws, targets, self.temperature)

    def class_probs(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> Float[Tensor, "*#S N K"]:
        """Class probabilities ``[..., N, K]`` given the outputs."""
        return torch.softmax(outputs / self.temperature, -1)

    def class_log_probs(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> Float[Tensor, "*#S N K"]:
        """Their logs, without the log of a number, from -80 on."""
        # below are numbers that no sum shows and that are a hundred times slower than others
        return torch.log_softmax(outputs / self.temperature, -1).clamp_min(-MAX_LOG_ODDS)

    def class_expectations(
        self, outputs: Outputs, chunks: Iterable[slice], num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """As in the base class, with less arithmetic: see :mod:`bll_pyro.gaussian.softmax_moments`."""
        parts = outputs.independent(num_points, seed)
        if parts is not None and num_points > 1:
            loc, scale, points = parts
            return independent_softmax_moments(
                loc / self.temperature, scale / self.temperature, points, chunks
            )
        found = []
        for rows in chunks:
            draws = outputs.rows(rows).draws_by_output(num_points, seed)
            found.append(softmax_moments(draws, self.temperature))
        return joined(found)

    def expected_derivatives(
        self, draws: Float[Tensor, "S N K"], targets: Int[Tensor, " N"], **noise: Tensor
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K K"]]:
        """``E[e_y - p] / temperature`` and ``E[diag(p) - p p'] / temperature^2``."""
        # classes first in memory: sums over them are then sums of long vectors
        logits = draws.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
        logits -= logits.amax(0)
        logits *= BITS / self.temperature
        probs = logits.exp2_()
        probs /= probs.sum(0)
        mean = probs.mean(1).mT
        hot = functional.one_hot(targets, probs.shape[0]).to(mean)
        rows = probs.permute(2, 1, 0).contiguous()
        outer = rows.mT @ rows / len(draws)
        return (hot - mean) / self.temperature, (torch.diag_embed(mean) - outer) / self.temperature**2

    def output_curvature(self, outputs: Float[Tensor, "*S N K"], **noise: Tensor) -> Float[Tensor, "*S N K"]:
        """``p (1 - p) / temperature^2``."""
        probs = self.class_probs(outputs)
        return probs * (1 - probs) / self.temperature**2

    def information(self, outputs: Float[Tensor, "N K"], **noise: Tensor) -> SoftmaxInformation:
        """``(diag(p) - p p') / temperature^2``."""
        return SoftmaxInformation(self.class_probs(outputs), self.temperature**-2)
