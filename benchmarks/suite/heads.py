"""Softmax heads: the plain methods of classification, on features that share a centre and a scale.

All have N(0, 1) priors on weights and biases.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.competitors.map_head import map_by_lbfgs, temperature_of
from benchmarks.method import ClassPrediction
from benchmarks.scores import mutual_information
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.descent import descend
from benchmarks.suite.predictions import Classes
from benchmarks.suite.splits import Scaled, Split

DROPOUT = 0.1  # of the features
HELD_OUT_SHARE = 0.1
ROWS_AT_ONCE = 500
Predict = Callable[[np.ndarray], Classes]


def tensors(split: Split) -> tuple[Scaled, Tensor, Tensor]:
    """The units of a split, and its training rows and labels."""
    scaled = Scaled.of(split)
    return scaled, torch.from_numpy(scaled.rows(split.features)), torch.from_numpy(split.targets)


def on_rows(scaled: Scaled, seed: int, predict: Callable[[Tensor], ClassPrediction]) -> Predict:
    """A prediction of raw features; draws are seeded, and the random state is put back."""

    @torch.no_grad()
    def predicted(features: np.ndarray) -> Classes:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [predict(part) for part in torch.from_numpy(scaled.rows(features)).split(ROWS_AT_ONCE)]
        unknown = [part.epistemic for part in parts if part.epistemic is not None]
        probs = torch.cat([part.probs for part in parts]).numpy()
        return Classes(probs, torch.cat(unknown).numpy() if unknown else None)

    return predicted


def softmax(weight: Tensor, bias: Tensor, temperature: float = 1.0) -> Callable[[Tensor], ClassPrediction]:
    """The prediction of one head."""
    return lambda rows: ClassPrediction((functional.linear(rows, weight, bias) / temperature).softmax(-1))


def point(split: Split, seed: int, budget: Budget = FULL) -> Predict:
    """The mode, by L-BFGS."""
    scaled, rows, labels = tensors(split)
    return on_rows(scaled, seed, softmax(*map_by_lbfgs(rows, labels, split.num_classes)))


def tempered(split: Split, seed: int, budget: Budget = FULL) -> Predict:
    """The mode of nine tenths of the rows, and a temperature from the rest (Guo et al. 2017)."""
    scaled, rows, labels = tensors(split)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    aside, rest = order.tensor_split([round(len(rows) * HELD_OUT_SHARE)])
    weight, bias = map_by_lbfgs(rows[rest], labels[rest], split.num_classes)
    temperature = temperature_of(functional.linear(rows[aside], weight, bias), labels[aside])
    return on_rows(scaled, seed, softmax(weight, bias, temperature))


def trained(
    rows: Tensor, labels: Tensor, num_classes: int, seed: int, budget: Budget, dropout: float
) -> torch.nn.Linear:
    """A head from a random start, by Adam with a rate that falls linearly to zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = torch.nn.Linear(rows.shape[1], num_classes)

        def loss(index: Tensor) -> Tensor:
            outputs = head(functional.dropout(rows[index], dropout))
            penalty = 0.5 * (head.weight.square().sum() + head.bias.square().sum()) / len(rows)
            return functional.cross_entropy(outputs, labels[index]) + penalty

        descend(head.parameters(), loss, len(rows), seed, budget)
    return head


def mixed(draw: Callable[[Tensor], list[Tensor]]) -> Callable[[Tensor], ClassPrediction]:
    """The average of several softmaxes, and their mutual information."""

    def predict(rows: Tensor) -> ClassPrediction:
        draws = torch.stack([outputs.softmax(-1) for outputs in draw(rows)])
        return ClassPrediction(draws.mean(0), mutual_information(draws))

    return predict


def ensemble(split: Split, seed: int, budget: Budget = FULL) -> Predict:
    """Heads from several starts, each with its own order of the rows (Lakshminarayanan et al. 2017)."""
    scaled, rows, labels = tensors(split)
    seeds = range(seed * 100, seed * 100 + budget.num_members)
    heads = [trained(rows, labels, split.num_classes, one, budget, 0.0) for one in seeds]
    return on_rows(scaled, seed, mixed(lambda features: [head(features) for head in heads]))


def dropout(split: Split, seed: int, budget: Budget = FULL) -> Predict:
    """Dropout of the features, in training and in prediction (Gal and Ghahramani 2016)."""
    scaled, rows, labels = tensors(split)
    head = trained(rows, labels, split.num_classes, seed, budget, DROPOUT)
    draws = range(budget.num_draws)
    return on_rows(scaled, seed, mixed(lambda some: [head(functional.dropout(some, DROPOUT)) for _ in draws]))
