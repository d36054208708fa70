"""Plain Pyro, as its tutorials write it: sampled weights, `AutoDiagonalNormal`, `Trace_ELBO`, Adam.

Raw features, prior N(0, 1) on weights and bias, Adam at 1e-2, 10 epochs of 512, 100 draws from `Predictive`. The guide
starts where Pyro starts it by default (`init_to_median`, scale 0.1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from benchmarks.competitors.batches import endless, shuffled
from benchmarks.method import ClassPrediction, Method, Predict, Step
from benchmarks.scores import mutual_information

LEARNING_RATE = 1e-2
BATCH_SIZE = 512
NUM_EPOCHS = 10
NUM_DRAWS = 100


class LinearClassifier(PyroModule):
    """Softmax regression with a standard Normal prior on every weight."""

    def __init__(self, num_features: int, num_classes: int, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([num_classes, num_features]).to_event(2))
        self.bias = PyroSample(dist.Normal(0.0, 1.0).expand([num_classes]).to_event(1))

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = features @ self.weight.mT + self.bias[..., None, :]
        size = len(features) if targets is None else self.num_rows
        # The index is given, so that Pyro scales by N / B without a permutation of its own in every step.
        with pyro.plate("data", size, subsample=torch.arange(len(features))):
            pyro.sample("y", dist.Categorical(logits=logits), obs=targets)
        return logits


def train(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    *,
    autoguide: type[AutoContinuous] = AutoDiagonalNormal,
    num_epochs: int = NUM_EPOCHS,
) -> tuple[AutoContinuous, Callable[..., ClassPrediction]]:
    """Train by SVI; give back the guide and ``predict(rows, parallel=False)``, which uses `Predictive`."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope() as store:
        model = LinearClassifier(features.shape[1], num_classes, len(features))
        guide = autoguide(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
        generator = torch.Generator().manual_seed(seed)
        for index in shuffled(len(features), BATCH_SIZE, num_epochs, generator):
            svi.step(features[index], targets[index])

    def predict(rows: Tensor, parallel: bool = False) -> ClassPrediction:
        with pyro.get_param_store().scope(store):
            predictive = Predictive(
                model, guide=guide, num_samples=NUM_DRAWS, return_sites=("_RETURN",), parallel=parallel
            )
            logits = predictive(rows)["_RETURN"].reshape(NUM_DRAWS, len(rows), num_classes)
        draws = logits.softmax(-1)
        return ClassPrediction(draws.mean(0), mutual_information(draws))

    return guide, predict


def fit(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Train; predict with one draw after another."""
    return train(features, targets, num_classes, seed)[1]


def fit_parallel(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Train in the same way; predict with all draws in one vectorised pass."""
    return partial(train(features, targets, num_classes, seed)[1], parallel=True)


def _svi_step(
    make_loss: Callable[[], Any],
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    batch_size: int,
    seed: int,
) -> Step:
    pyro.set_rng_seed(seed)
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))
    with pyro.get_param_store().scope() as store:
        model = LinearClassifier(features.shape[1], num_classes, len(features))
        svi = SVI(model, AutoDiagonalNormal(model), pyro.optim.Adam({"lr": LEARNING_RATE}), make_loss())

    def run() -> None:
        index = next(batches)
        # Pyro's parameters live in one global store under the guide's class name. Two guides that take turns would
        # train each other's values, so each has its own store (a few microseconds).
        with pyro.get_param_store().scope(store):
            svi.step(features[index], targets[index])

    return run


def step(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make an SVI step with `Trace_ELBO`."""
    return _svi_step(Trace_ELBO, features, targets, num_classes, batch_size, seed)


def step_jit(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make an SVI step with `JitTrace_ELBO` (compiled on the first call)."""
    return _svi_step(
        lambda: JitTrace_ELBO(ignore_jit_warnings=True), features, targets, num_classes, batch_size, seed
    )


def step_module(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make a step of the ELBO as a torch module, with torch's fused Adam and Pyro's validation off."""
    pyro.set_rng_seed(seed)
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))
    with pyro.get_param_store().scope() as store:
        model = LinearClassifier(features.shape[1], num_classes, len(features))
        loss_module = Trace_ELBO()(model, AutoDiagonalNormal(model))
        loss_module(features[:batch_size], targets[:batch_size])  # makes the guide's parameters
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=LEARNING_RATE, fused=True)

    def run() -> None:
        index = next(batches)
        with pyro.get_param_store().scope(store), pyro.validation_enabled(False):
            loss = loss_module(features[index], targets[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


METHODS = (
    Method("plain Pyro", fit, step, note="Trace_ELBO; Predictive, one draw after another"),
    Method("plain Pyro, vectorised", fit_parallel, note="Trace_ELBO; Predictive(parallel=True)"),
)
STEPS = (
    Method("plain Pyro, Trace_ELBO", fit, step),
    Method("plain Pyro, JitTrace_ELBO", fit, step_jit),
    Method("plain Pyro, ELBO module, fused Adam, no validation", fit, step_module),
)
