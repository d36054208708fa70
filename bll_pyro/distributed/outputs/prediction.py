"""Predictions of a layer whose classes are spread over ranks: the most probable classes, and the uncertainty of each row.

Draws of the outputs are independent normals of each class, the same for every row, in pairs that mirror each other at the mean.
Two passes go over the blocks of classes: the first finds the normaliser of each draw, over all ranks, the second the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.distributed.outputs.layer import BLOCK, OutputShards, lowered_by
from bll_pyro.features.arrays import to_targets
from bll_pyro.features.data import read
from bll_pyro.scope import generator
from bll_pyro.summary import Summary

NUMBERS = 2**22  # outputs of rows and draws at once


@dataclass(frozen=True, eq=False)
class ShardedPrediction(Summary):
    """The same on all ranks.

    Parameters
    ----------
    label, probs
        The most probable classes ``[N, top]``, the first one first, and their probabilities.
    total, aleatoric, epistemic
        Entropy of the mean probabilities, mean entropy, and their difference, nats ``[N]``.
    log_prob
        Log probability of the given labels ``[N]``, nats; None where none were given.
    """

    label: Int[Tensor, "N top"]
    probs: Float[Tensor, "N top"]
    total: Float[Tensor, " N"]
    aleatoric: Float[Tensor, " N"]
    epistemic: Float[Tensor, " N"]
    log_prob: Float[Tensor, " N"] | None = None


@torch.no_grad()
def predict_shards(
    shards: OutputShards, inputs: Any, labels: Any = None, *, top: int = 5, num_draws: int = 32, seed: int = 0
) -> ShardedPrediction:
    """Predict the same rows on all ranks.

    Parameters
    ----------
    shards
        The layer.
    inputs
        Features ``[N, D]``, or a ``bll.Features`` store.
    labels
        Class numbers ``[N]`` whose log probabilities are wanted, or None.
    top
        Number of most probable classes.
    num_draws
        Draws of the outputs, an even number; of a point there is one.
    seed
        Of the draws.
    """
    count(top, "top", "OutputShards.predict")
    if count(num_draws, "num_draws", "OutputShards.predict", 2) % 2:
        raise ValueError(
            f"OutputShards.predict(num_draws=...): expected an even number, since draws come in pairs, got {num_draws}"
        )
    num_draws = 1 if shards.scale is None else num_draws
    top = min(top, shards.num_classes)
    size = max(1, NUMBERS // (BLOCK * num_draws))
    with shards.ranks.together():
        source = read(inputs, need_targets=False, what="inputs")
        given = None if labels is None else to_targets(labels, "labels")
        parts, start = [], 0
        for features, _ in source.batches(size):
            wanted = None if given is None else given[start : start + len(features)]  # type: ignore[index]
            parts.append(_rows(shards, shards.design(features), wanted, top, num_draws, seed))
            start += len(features)
    found = [None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)]
    return ShardedPrediction(*found)  # type: ignore[arg-type]


def _outputs(shards: OutputShards, design: Tensor, num_draws: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """First class and outputs ``[S, n, b]`` of each own block of classes."""
    squares = design.square()
    for start in range(0, len(shards.loc), BLOCK):
        mean = design @ shards.loc[start : start + BLOCK].mT
        if shards.scale is None:
            yield shards.first + start, mean[None]
            continue
        spread = (squares @ shards.scale[start : start + BLOCK].square().mT).sqrt_()
        random = generator((seed + 1) * 1_000_003 + (shards.first + start) // BLOCK)
        noise = torch.randn(num_draws // 2, 1, mean.shape[1], generator=random)
        yield shards.first + start, torch.addcmul(mean, torch.cat([noise, -noise]), spread)


def _rows(
    shards: OutputShards, design: Tensor, labels: Tensor | None, top: int, num_draws: int, seed: int
) -> tuple[Tensor | None, ...]:
    """The fields of a prediction of some rows."""
    ranks, num_rows = shards.ranks, len(design)
    largest = design.new_full((num_draws, num_rows), -torch.inf)
    for _, outputs in _outputs(shards, design, num_draws, seed):
        largest = largest.maximum(outputs.amax(-1))
    largest = ranks.largest(largest)
    total, inner = torch.zeros_like(largest), torch.zeros_like(largest)
    for _, outputs in _outputs(shards, design, num_draws, seed):
        shifted = lowered_by(outputs, largest)
        weights = shifted.exp()
        total += weights.sum(-1)
        inner += weights.mul_(shifted).sum(-1)
    total, inner = ranks.sums(total, inner)
    aleatoric = (total.log() - inner / total).mean(0)
    normaliser = largest + total.log()
    entropy, of_label = design.new_zeros(num_rows), design.new_zeros(num_rows)
    probs, label = design.new_zeros(num_rows, 0), torch.zeros(num_rows, 0, dtype=torch.int64)
    for first, outputs in _outputs(shards, design, num_draws, seed):
        mean = lowered_by(outputs, normaliser).exp_().mean(0)
        entropy += torch.special.entr(mean).sum(-1)
        if labels is not None:
            inside = ((labels >= first) & (labels < first + mean.shape[1])).nonzero().squeeze(1)
            of_label[inside] = mean[inside, labels[inside] - first]
        numbers = torch.arange(first, first + mean.shape[1]).expand(num_rows, -1)
        probs, label = _most(torch.cat([probs, mean], 1), torch.cat([label, numbers], 1), top)
    entropy, of_label = ranks.sums(entropy, of_label)
    probs, label = _most(ranks.cat(probs.mT).mT, ranks.cat(label.mT).mT, top)
    aleatoric = aleatoric.minimum(entropy)  # up to rounding
    log_prob = None if labels is None else of_label.log()
    return label, probs, entropy, aleatoric, entropy - aleatoric, log_prob


def _most(probs: Tensor, label: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The most probable classes of each row."""
    best = probs.topk(min(top, probs.shape[1]), dim=1)
    return best.values, label.gather(1, best.indices)
