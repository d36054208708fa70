"""Recalibrations: one number, found on held-out rows after the fit, that makes predictions calibrated.

They change what is predicted and not the posterior: weights, tree and evidence are those of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import positive
from bll_pyro.declaration import LATER, Declaration


@dataclass(frozen=True, eq=False)
class FoundOn(Declaration):
    """How a recalibration was found: on which rows, and what it did there.

    Parameters
    ----------
    source, num_rows
        What rows these were, e.g. ``"rows kept from training"``, and their number.
    measure
        What is compared: the share of the rows inside 90% intervals for real values, the mean confidence for classes and labels.
    aim
        The right value of it: 0.9, or the accuracy on the same rows.
    before, after
        Its value without and with the recalibration. On the rows that the number was found on, so that ``after`` is near ``aim``
        by construction.
    """

    source: str
    num_rows: int
    measure: str
    aim: float
    before: float
    after: float
    family: ClassVar[str] = "recalibrations"

    def __str__(self) -> str:
        values = f"{self.before:.3f}, with it {self.after:.3f}, right {self.aim:.3f}"
        return f"on {self.num_rows:,} {self.source}: {self.measure} {values}"


@dataclass(frozen=True, eq=False)
class Recalibration(Declaration):
    """What ``bll.calibrate`` finds, and :func:`bll_pyro.fit` on rows that it keeps.

    Parameters
    ----------
    found_on
        How it was found; None where it was given by hand, or saved before this was recorded.
    """

    family: ClassVar[str] = "recalibrations"
    found_on: FoundOn | None = field(default=None, kw_only=True, repr=False, metadata=LATER)

    @property
    def alone(self) -> Self:
        """The same without how it was found: what predictions depend on."""
        return replace(self, found_on=None)


@dataclass(frozen=True, eq=False)
class PredictiveTemperature(Recalibration):
    """Predicted probabilities ``p_k^(1/T) / sum_j p_j^(1/T)``; the order of the classes never changes.

    For a point estimate this is the temperature scaling of Guo et al. (2017). It is neither the softmax temperature of
    ``Categorical``, which is part of the model and acts before the average over the posterior, nor that of a cold posterior.

    Parameters
    ----------
    temperature
        T > 0; larger is less certain.
    """

    temperature: float

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature", "PredictiveTemperature")


@dataclass(frozen=True, eq=False)
class NoiseFactor(Recalibration):
    """The standard deviation of the noise times a factor; the mean and the epistemic part do not change.

    Parameters
    ----------
    factor
        Larger than 1 where the fit is overconfident.
    """

    factor: float

    def __post_init__(self) -> None:
        positive(self.factor, "factor", "NoiseFactor")


def class_entropy(probs: Float[Tensor, "*S C"]) -> Float[Tensor, " *S"]:
    """Entropy in nats over the last axis."""
    # not by torch.special.entr, which in a graph is ten operations that look for numbers that probabilities never are
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)


def softmax_entropy(logits: Float[Tensor, "*S C"]) -> tuple[Float[Tensor, "*S C"], Float[Tensor, " *S"]]:
    """Softmax, and its entropy in nats over the last axis, with one logarithm a row: the largest probability is ``1 / Z``."""
    probs = logits.softmax(-1)
    below = logits - logits.amax(-1, keepdim=True)
    return probs, -probs.amax(-1).log() - (probs * below).sum(-1)


def averaged(
    conditional: Float[Tensor, "S *N C"], temperature: float = 1.0
) -> tuple[Float[Tensor, "*N C"], Float[Tensor, " *N"]]:
    """Average ``[N, C]`` of class probabilities ``[S, N, C]``, tempered, and the expected entropy ``[N]`` that belongs to it.

    The joint distribution of draw and class, ``p_s(c) / S``, is multiplied by ``c(y) = p(y)^(1/T - 1)`` of the class alone.
    Then the marginal of the classes is the tempered average, and the distribution of the draw given the class does not change.
    Total and expected entropy belong to one joint distribution, and their difference is its mutual information.
    """
    mean = conditional.mean(0)
    if temperature == 1.0:
        return mean, class_entropy(conditional).mean(0)
    tiny = torch.finfo(mean.dtype).tiny
    log_mean = mean.clamp_min(tiny).log()
    log_joint = conditional.clamp_min(tiny).log() + (1 / temperature - 1) * log_mean
    log_weight = log_joint.logsumexp(-1, keepdim=True)
    given = log_joint - log_weight
    expected = log_weight.squeeze(-1).softmax(0) * -(given.exp() * given).sum(-1)
    return tempered(log_mean, mean, temperature), expected.sum(0)


def averaged_parts(
    log_probs: Sequence[Float[Tensor, "_ *N C"]], temperature: float = 1.0
) -> tuple[Float[Tensor, "*N C"], Float[Tensor, " *N"]]:
    """The same from logs of the class probabilities, some draws in each part, with less arithmetic: for graphs.

    With ``r(c) = p(c)^(1/T - 1)``, scaled so that ``sum_c p(c) r(c) = 1``, and ``w_s = sum_c p_s(c) r(c)``, the draw has the
    probability ``w_s / S``, and the class given the draw ``p_s(c) r(c) / w_s``.
    """
    num_draws = sum(len(part) for part in log_probs)
    mean = torch.stack([part.exp().sum(0) for part in log_probs]).sum(0) / num_draws
    if temperature == 1.0:
        entropies = [(part.exp() * part).sum((0, -1)) for part in log_probs]
        return mean, -torch.stack(entropies).sum(0) / num_draws
    tiny = torch.finfo(mean.dtype).tiny
    log_mean = mean.clamp_min(tiny).log()
    log_ratio = (1 / temperature - 1) * log_mean - (log_mean / temperature).logsumexp(-1, keepdim=True)
    ratio, expected = log_ratio.exp(), torch.zeros_like(mean[..., 0])
    for part in log_probs:
        weighted = part.exp() * ratio
        weight = weighted.sum(-1)
        expected = expected + (weight * weight.clamp_min(tiny).log()).sum(0)
        expected = expected - (weighted * (part + log_ratio)).sum((0, -1))
    return tempered(log_mean, mean, temperature), expected / num_draws


def tempered(
    logits: Float[Tensor, "*N C"], probs: Float[Tensor, "*N C"], temperature: float
) -> Float[Tensor, "*N C"]:
    """``probs``, the softmax of ``logits``, tempered, with the same label.

    Probabilities that differ in the last bit may be equal, or change places, after rounding.
    """
    is_most = probs == probs.amax(-1, keepdim=True)
    found = (logits / temperature).softmax(-1)
    return torch.where(is_most, found, found * (1 - 4 * torch.finfo(found.dtype).eps))


def tempered_parts(
    mean: Float[Tensor, "*N C"], expected_entropy: Float[Tensor, " *N"], temperature: float
) -> tuple[Float[Tensor, "*N C"], Float[Tensor, " *N"]]:
    """The same where only the average and its expected entropy are known: the aleatoric share of the entropy stays as it is."""
    tiny = torch.finfo(mean.dtype).tiny
    probs = tempered(mean.clamp_min(tiny).log(), mean, temperature)
    share = (expected_entropy / class_entropy(mean).clamp_min(tiny)).clamp(0, 1)
    return probs, share * class_entropy(probs)
