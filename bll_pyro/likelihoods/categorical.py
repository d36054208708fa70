"""Classes: the softmax likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bll_pyro.checks import count, positive
from bll_pyro.gaussian import Outputs
from bll_pyro.gaussian.information import SoftmaxInformation
from bll_pyro.gaussian.scratch import scratch
from bll_pyro.likelihoods.base import Likelihood, TargetShape, halves, integer_targets, joined

MAX_LOG_ODDS = 80.0  # whose exponential is still a float32
# Draws are turned into logarithms of base 2: torch leaves exp to a library that some processors run four times slower than
# exp2, which it does by itself, and both are exact to the last digit.
BITS = math.log2(math.e)


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    """Class labels: ``y ~ Categorical(softmax(f / temperature))``.

    Parameters
    ----------
    num_classes
        Number of classes K; labels are integers from 0 to K - 1.
    temperature
        Softmax temperature: larger is less certain. (Not the temperature of a cold posterior.)
    """

    num_classes: int
    temperature: float = 1.0
    is_discrete: ClassVar[bool] = True
    has_slope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        count(self.num_classes, "num_classes", "Categorical", 2)
        positive(self.temperature, "temperature", "Categorical")

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output for each class."""
        return self.num_classes

    def check_targets(self, targets: Tensor) -> Tensor:
        """Labels ``[N]``, int64."""
        return integer_targets(targets, self.num_classes, "Categorical")

    def distribution(self, outputs: Tensor, **noise: Tensor) -> dist.Categorical:
        """Categorical with logits ``f / temperature``."""
        return dist.Categorical(logits=outputs / self.temperature, validate_args=False)

    def log_prob(self, outputs: Tensor, targets: Tensor, **noise: Tensor) -> Tensor:
        """Log probability ``[..., N]`` of labels ``[N]``; cross entropy is much faster than the distribution."""
        logits = outputs if self.temperature == 1.0 else outputs / self.temperature
        if logits.dim() == 2:
            return -functional.cross_entropy(logits, targets, reduction="none")
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(-1, targets.expand(log_probs.shape[:-1])[..., None]).squeeze(-1)

    def slope(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability and its gradient, ``(e_y - p) / temperature``."""
        logits = outputs if self.temperature == 1.0 else outputs / self.temperature
        log_probs = logits.log_softmax(-1)
        chosen = targets.expand(log_probs.shape[:-1])[..., None]
        values = log_probs.gather(-1, chosen).squeeze(-1)
        slopes = log_probs.exp_().neg_()
        slopes.scatter_add_(-1, chosen, slopes.new_ones(()).expand(chosen.shape))
        return values, slopes if self.temperature == 1.0 else slopes.div_(self.temperature)

    def predictive_log_prob(
        self, outputs: Outputs, targets: Tensor, num_points: int, seed: int = 0, **noise: Tensor
    ) -> Tensor:
        """``log E[p(y | f)]`` of each row, ``[N]``, from the odds against the label: one exponential a number, no more."""
        draws = outputs.draws_by_output(
            num_points, seed
        )  # sums over the classes are then sums of long vectors
        own = draws.gather(0, targets.expand(1, draws.shape[1], -1))
        draws -= own
        draws *= BITS / self.temperature
        odds = draws.clamp_max(MAX_LOG_ODDS * BITS).exp2_().sum(0)
        result = odds.reciprocal_().mean(0).log_()
        far = result < -MAX_LOG_ODDS / 2  # where the largest odds may have been cut
        if bool(far.any()):
            log_probs = -(draws[:, :, far] / BITS).logsumexp(0)
            result[far] = log_probs.logsumexp(0) - math.log(draws.shape[1])
        return result

    def class_probs(self, outputs: Tensor, **noise: Tensor) -> Tensor:
        """Class probabilities ``[..., N, K]`` given the outputs."""
        return torch.softmax(outputs / self.temperature, -1)

    def class_expectations(
        self, outputs: Outputs, chunks: Iterable[slice], num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the classes first ``[K, S, N]``: sums over a few classes are then sums of long vectors.

        ``H = log Z - sum_k p_k f_k`` for ``f`` less its maximum: one exponential a number and no logarithm. Independent outputs
        (:func:`independent_expectations`) are not even kept beside their exponentials.
        """
        parts = outputs.independent(num_points, seed)
        if parts is not None and num_points > 1:
            loc, scale, points = parts
            return independent_expectations(loc / self.temperature, scale / self.temperature, points, chunks)
        found = []
        for rows in chunks:
            bits = outputs.rows(rows).draws_by_output(num_points, seed)
            bits -= bits.amax(0)
            bits *= BITS / self.temperature
            probs = bits.exp2()
            normaliser = probs.sum(0)
            probs /= normaliser
            entropy = (normaliser.log() - bits.mul_(probs).sum(0) / BITS).mean(0)
            mean, error = halves(probs.transpose(0, 1))
            found.append((mean.mT.contiguous(), entropy, error.square().mean(0).sqrt()))
        return joined(found)

    def expected_derivatives(self, draws: Tensor, targets: Tensor, **noise: Tensor) -> tuple[Tensor, Tensor]:
        """``E[e_y - p] / temperature`` and ``E[diag(p) - p p'] / temperature^2``."""
        logits = draws.permute(2, 0, 1).clone(
            memory_format=torch.contiguous_format
        )  # classes first: long vectors
        logits -= logits.amax(0)
        logits *= BITS / self.temperature
        probs = logits.exp2_()
        probs /= probs.sum(0)
        mean = probs.mean(1).mT
        hot = functional.one_hot(targets, self.num_classes).to(mean)
        rows = probs.permute(2, 1, 0).contiguous()
        outer = rows.mT @ rows / len(draws)
        return (hot - mean) / self.temperature, (torch.diag_embed(mean) - outer) / self.temperature**2

    def output_curvature(self, outputs: Tensor, **noise: Tensor) -> Tensor:
        """``p (1 - p) / temperature^2``."""
        probs = self.class_probs(outputs)
        return probs * (1 - probs) / self.temperature**2

    def information(self, outputs: Tensor, **noise: Tensor) -> SoftmaxInformation:
        """``(diag(p) - p p') / temperature^2``."""
        return SoftmaxInformation(self.class_probs(outputs), self.temperature**-2)


def independent_expectations(
    loc: Tensor, scale: Tensor, points: Tensor, chunks: Iterable[slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[N, K]`` of the softmax p of ``loc + scale * points``, its mean entropy, and the error of the mean, both ``[N]``.

    For S > 1 points e ``[K, S]`` that all rows share. The mean entropy is
    ``E[log Z] - sum_k (loc_k E[p_k] + scale_k E[p_k e_k])``, and both expectations are products of p with one small matrix: p is
    read once, and nothing else of its size is made.

    p lies in memory as two halves of the points ``[2, K, S / 2, N]``. Their means give the error, and two threads that share the
    work have a half each from the first operation to the last: what one has written the other never waits for.

    Exponentials are relative to each row's largest ``loc``, and to the largest of each draw only where these might leave the
    range of the numbers.
    """
    num_outputs, num_points = points.shape
    middle = num_points // 2
    size = num_points - middle
    e = torch.stack(
        [points[:, :size], points[:, middle:]]
    )  # of an odd number both halves have the one between,
    share = points.new_full((2, 1, size), 1 / num_points)
    share[0, :, middle:] = 0.0  # which counts in the second
    sums = torch.stack([share.expand_as(e), share * e], 2).view(2 * num_outputs, 2, size)
    ones = points.new_ones(2, 1, num_outputs)
    loc = loc - loc.amax(0)
    far = bool(scale.amax() * points.abs().amax() > MAX_LOG_ODDS / 2)
    loc_bits, scale_bits, e = BITS * loc[:, None], BITS * scale[:, None], e[..., None]
    found = loc.new_empty(2, num_outputs, 2, loc.shape[1])
    log_normaliser = loc.new_empty(loc.shape[1])
    for rows in chunks:
        chunk = loc_bits[..., rows]
        shape = (2, num_outputs, size, chunk.shape[-1])
        values = torch.addcmul(chunk, scale_bits[..., rows], e, out=scratch("draws", shape, loc))
        if far:
            largest = values.amax(1, keepdim=True)
            values -= largest
        probs = values.exp2_()
        normaliser = torch.bmm(ones, probs.view(2, num_outputs, -1)).view(2, 1, *shape[2:])
        probs *= normaliser.reciprocal()
        found[..., rows] = torch.bmm(sums, probs.view(-1, *shape[2:])).view(2, num_outputs, 2, -1)
        normaliser.log_()
        if far:
            normaliser += largest / BITS
        log_normaliser[rows] = share.view(-1) @ normaliser.view(2 * size, -1)
    mean, slope = found.sum(0).unbind(1)
    first, second = found[0, :, 0] * (num_points / middle), found[1, :, 0] * (num_points / size)
    entropy = log_normaliser - (loc * mean + scale * slope).sum(0)
    return mean.mT.contiguous(), entropy, (first - second).square().mean(0).sqrt() / 2
