"""Classes in an order: grades, stages, stars."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.checks import positive
from bll_pyro.declaration import LATER
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.likelihoods.labels import OfClasses
from bll_pyro.likelihoods.targets import integer_targets


@dataclass(frozen=True, eq=False)
class Ordinal(OfClasses):
    """Ordered classes: ``P(y <= c) = sigmoid(cutpoints[c] - f)`` with one output f (McCullagh 1980).

    The cutpoints ``[C - 1]`` are ordered and have a prior: Normal before they are put in order, around the logistic
    quantiles that make all classes equally likely at ``f = 0``.

    Parameters
    ----------
    num_classes
        Number of classes C >= 3. None takes those of the training targets.
    cutpoint_scale
        Standard deviation of the prior of each cutpoint.
    classes
        Labels of the classes from the lowest to the highest, in place of ``num_classes``. Needed for text that is not an ordered
        categorical (pandas) or an Enum (polars), and where a class has no row in the training data. None (default): whole
        numbers from 0 to C - 1, or the C whole numbers that occur in the training targets.
    """

    num_classes: int | None = None
    cutpoint_scale: float = 2.0
    classes: Any = field(default=None, kw_only=True, metadata=LATER)
    needs_order: ClassVar[bool] = True
    is_discrete: ClassVar[bool] = True
    noise_moves_outputs: ClassVar[bool] = True  # a bias moves the outputs as cutpoints move against them

    def __post_init__(self) -> None:
        number = self._settled(self.num_classes, 3, "two classes have no order: use Bernoulli()")
        object.__setattr__(self, "num_classes", number)
        positive(self.cutpoint_scale, "cutpoint_scale", "Ordinal")

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output places a row on the scale."""
        return 1

    def check_targets(self, targets: Tensor) -> Int[Tensor, " N"]:
        """Labels ``[N]``, int64."""
        return integer_targets(targets, self._known_number(), "Ordinal")

    def check_training(self, targets: Int[Tensor, " N"]) -> None:
        """In data of some size every class between the lowest and the highest that occurs has to occur."""
        number = self._known_number()
        if len(targets) < 10 * number:
            return
        counts = torch.bincount(targets, minlength=number)
        inner = range(int(targets.min()), int(targets.max()))
        gaps = [c for c in (counts == 0).nonzero().flatten().tolist() if c in inner]
        if gaps:
            raise ValueError(
                f"Ordinal: expected labels without gaps, got none of class {self._named(gaps)}; renumber the labels so that "
                "every step of the scale occurs, or leave these classes out"
            )

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``cutpoints [C - 1]``, in order."""
        number = self._known_number()
        share = torch.arange(1, number, dtype=torch.get_default_dtype()) / number
        centre = torch.logit(share)
        transform = dist.transforms.OrderedTransform()
        start = transform.inv(centre)
        base = dist.Normal(start, torch.full_like(start, self.cutpoint_scale), validate_args=False).to_event(
            1
        )
        return {"cutpoints": dist.TransformedDistribution(base, [transform])}

    def class_probs(
        self, outputs: Float[Tensor, "*#S N 1"], cutpoints: Tensor | None = None, **noise: Tensor
    ) -> Float[Tensor, "*#S N C"]:
        """Class probabilities ``[..., N, C]``: differences of the cumulative ones."""
        assert cutpoints is not None
        below = torch.sigmoid(cutpoints - outputs)
        zero, one = torch.zeros_like(below[..., :1]), torch.ones_like(below[..., :1])
        return torch.diff(torch.cat([zero, below, one], -1)).clamp_min(torch.finfo(below.dtype).tiny)

    def distribution(
        self, outputs: Float[Tensor, "*#S N 1"], cutpoints: Tensor | None = None, **noise: Tensor
    ) -> dist.Categorical:
        """Categorical with the probabilities above."""
        return dist.Categorical(probs=self.class_probs(outputs, cutpoints), validate_args=False)

    def log_prob(
        self,
        outputs: Float[Tensor, "*#S N 1"],
        targets: Int[Tensor, " N"],
        cutpoints: Tensor | None = None,
        **noise: Tensor,
    ) -> Float[Tensor, "*#S N"]:
        """Log probability ``[..., N]`` of labels, from ``log(sigmoid(b) - sigmoid(a))`` without cancellation."""
        assert cutpoints is not None
        infinity = torch.full_like(cutpoints[..., :1], float("inf"))
        edges = torch.cat([-infinity, cutpoints, infinity], -1)
        shape = torch.broadcast_shapes(outputs.shape[:-1], edges.shape[:-1])
        edges = edges.expand(*shape, edges.shape[-1])
        index = targets.expand(shape)[..., None]
        upper = edges.gather(-1, index + 1).squeeze(-1) - outputs.squeeze(-1)
        lower = edges.gather(-1, index).squeeze(-1) - outputs.squeeze(-1)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        gap = torch.where(
            torch.isinf(lower) | torch.isinf(upper), torch.full_like(lower, -torch.inf), lower - upper
        )
        gap = gap.clamp_min(-80.0)
        first = torch.nn.functional.logsigmoid(upper.clamp(-1e4, 1e4))
        second = torch.nn.functional.logsigmoid((-lower).clamp(-1e4, 1e4))
        return first + second + torch.log(-torch.expm1(gap))

    def output_curvature(
        self, outputs: Float[Tensor, "*S N 1"], cutpoints: Tensor | None = None, **noise: Tensor
    ) -> Float[Tensor, "*S N 1"]:
        """Fisher information of the output: ``sum_c (dp_c / df)^2 / p_c``, with ``dp_c / df = p_c (F_c + F_c-1 - 1)``."""
        assert cutpoints is not None
        below = torch.sigmoid(cutpoints - outputs)
        zero, one = torch.zeros_like(below[..., :1]), torch.ones_like(below[..., :1])
        edges = torch.cat([zero, below, one], -1)
        slope = edges[..., 1:] + edges[..., :-1] - 1
        return (torch.diff(edges) * slope.square()).sum(-1, keepdim=True)
