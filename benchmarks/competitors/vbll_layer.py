"""vbll: its discriminative classification layer with diagonal or low-rank covariance.

10 epochs of 512 with fused Adam at 3e-3 (for it the best of 1e-2, 3e-3 and 1e-3), and 1/N as the weight of the KL
term, as its users set it by hand. The layer has no bias, so a constant 1 is joined to the features. Prediction averages
20 draws, the number that its `forward` fixes; they are drawn through its own `logit_predictive`, so that mutual
information comes from the same draws.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.competitors.batches import endless, shuffled
from benchmarks.method import ClassPrediction, Method, Predict, Step
from benchmarks.scores import mutual_information

LEARNING_RATE = 3e-3
BATCH_SIZE = 512
NUM_EPOCHS = 10
NUM_DRAWS = 20


def _with_constant(features: Tensor) -> Tensor:
    return functional.pad(features, (0, 1), value=1.0)


def _layer(features: Tensor, num_classes: int, parameterization: str) -> Any:
    from vbll.layers.classification import DiscClassification  # type: ignore[import-not-found]

    num_rows, num_features = features.shape
    return DiscClassification(
        num_features, num_classes, regularization_weight=1.0 / num_rows, parameterization=parameterization
    )


def fit(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    *,
    parameterization: str = "diagonal",
    num_epochs: int = NUM_EPOCHS,
) -> Predict:
    """Train for a fixed number of epochs."""
    torch.manual_seed(seed)
    features = _with_constant(features)
    layer = _layer(features, num_classes, parameterization)
    optimizer = torch.optim.Adam(
        [p for p in layer.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    # `forward` also draws a prediction, which training does not need: its loss is asked for directly.
    for index in shuffled(len(features), BATCH_SIZE, num_epochs, generator):
        optimizer.zero_grad()
        layer._get_train_loss_fn(features[index])(targets[index]).backward()
        optimizer.step()

    @torch.no_grad()
    def predict(rows: Tensor) -> ClassPrediction:
        probs, epistemic = [], []
        for part in _with_constant(rows).split(max(1, 2_000_000 // (NUM_DRAWS * num_classes))):
            draws = layer.logit_predictive(part).rsample(torch.Size([NUM_DRAWS])).softmax(-1)
            probs.append(draws.mean(0))
            epistemic.append(mutual_information(draws))
        return ClassPrediction(torch.cat(probs), torch.cat(epistemic))

    return predict


def step(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make one step of the diagonal layer."""
    torch.manual_seed(seed)
    layer = _layer(features, num_classes, "diagonal")
    optimizer = torch.optim.Adam(
        [p for p in layer.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True
    )
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))

    def run() -> None:
        index = next(batches)
        optimizer.zero_grad()
        layer._get_train_loss_fn(features[index])(targets[index]).backward()
        optimizer.step()

    return run


def _method(parameterization: str) -> Method:
    return Method(
        f"vbll discriminative, {parameterization}",
        partial(fit, parameterization=parameterization),
        step if parameterization == "diagonal" else None,
        note="weight 1/N set by hand, 20 draws",
        requires="vbll",
    )


METHODS = (_method("diagonal"), _method("lowrank"))
STEPS = METHODS[:1]
