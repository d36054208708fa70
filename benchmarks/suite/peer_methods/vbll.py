"""vbll: its discriminative layer, and its layer for values, alone and behind a hidden layer.

Classes: `benchmarks.competitors.vbll_layer`, with the suite's number of steps. Values: weight 1/N, dense covariance (its
default), gradients clipped at 1 as its tutorial has it; the noise starts at 1 in standardised units, not at random, since a
random start can end at a collapsed noise. Having no bias, the layer is given a constant feature.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.competitors import vbll_layer
from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.descent import descend
from benchmarks.suite.network import WIDTH, tensors
from benchmarks.suite.predictions import Normals
from benchmarks.suite.splits import NETWORK, Split


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """Its discriminative layer."""
    scaled, rows, labels = heads.tensors(split)
    with torch.random.fork_rng():
        predict = vbll_layer.fit(
            rows, labels, split.num_classes, seed, num_epochs=budget.num_epochs(len(rows))
        )
    return heads.on_rows(scaled, seed, predict)


class Network(nn.Module):
    """A hidden layer or none, and vbll's layer."""

    def __init__(self, num_inputs: int, num_rows: int, *, has_hidden: bool) -> None:
        from vbll.layers.regression import Regression  # type: ignore[import-not-found]

        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(num_inputs, WIDTH), nn.ReLU()) if has_hidden else nn.Identity()
        num_features = (WIDTH if has_hidden else num_inputs) + 1
        self.last: Any = Regression(num_features, 1, 1.0 / num_rows, wishart_scale=0.1)
        with torch.no_grad():
            self.last.noise_logdiag.zero_()

    def forward(self, rows: torch.Tensor) -> Any:
        """Its own return value: predictive and loss."""
        return self.last(functional.pad(self.hidden(rows), (0, 1), value=1.0))


def values(split: Split, seed: int, budget: Budget = FULL) -> Any:
    """Its layer for values; a network where the task is one."""
    scaled, rows, targets = tensors(split)
    is_network = split.kind == NETWORK
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Network(rows.shape[1], len(rows), has_hidden=is_network)
        descend(
            (p for p in net.parameters() if p.requires_grad),
            lambda index: net(rows[index]).train_loss_fn(targets[index, None]),
            len(rows),
            seed,
            budget,
            is_network=is_network,
            clip_norm=1.0,
        )

    @torch.no_grad()
    def predict(features: np.ndarray) -> Normals:
        found = net(torch.from_numpy(scaled.rows(features))).predictive
        mean, spread = (
            t.reshape(len(features)).double().numpy() for t in (found.mean, found.variance.sqrt())
        )
        return Normals(mean * scaled.target_scale + scaled.target_center, spread * scaled.target_scale)

    return predict


network = values
