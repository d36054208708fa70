"""The reference: mean-field last layer as a short torch loop written by hand.

ELBO with the closed-form KL to N(0, 1) and one draw of the outputs for each row (local reparameterisation; Kingma,
Salimans and Welling 2015), fused Adam at 1e-2, 10 epochs of 512, raw features, 100 output draws to predict.
"""

import os
import shutil

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.competitors.batches import endless, shuffled
from benchmarks.method import ClassPrediction, Method, Predict, Step
from benchmarks.scores import mutual_information

LEARNING_RATE = 1e-2
BATCH_SIZE = 512
NUM_EPOCHS = 10
NUM_DRAWS = 100
INITIAL_SCALE = 0.1


class MeanField(torch.nn.Module):
    """Means and log-variances of independent Normal weights ``[K, D]`` and biases ``[K]``.

    The log-variance is the parameter, since both the outputs' variance and the KL need the variance itself: one
    exponential, and no square or root of anything of size K x D.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        log_variance = 2.0 * torch.tensor(INITIAL_SCALE).log().item()
        self.mean = torch.nn.Parameter(torch.zeros(num_classes, num_features))
        self.log_variance = torch.nn.Parameter(torch.full((num_classes, num_features), log_variance))
        self.bias_mean = torch.nn.Parameter(torch.zeros(num_classes))
        self.bias_log_variance = torch.nn.Parameter(torch.full((num_classes,), log_variance))

    def outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outputs, each ``[B, K]``."""
        mean = functional.linear(features, self.mean, self.bias_mean)
        variance = functional.linear(features.square(), self.log_variance.exp(), self.bias_log_variance.exp())
        return mean, variance

    def loss(self, features: Tensor, targets: Tensor, num_rows: int) -> Tensor:
        """Negative ELBO per training row, estimated from a batch."""
        weight_variance, bias_variance = self.log_variance.exp(), self.bias_log_variance.exp()
        mean = functional.linear(features, self.mean, self.bias_mean)
        variance = functional.linear(features.square(), weight_variance, bias_variance)
        outputs = torch.addcmul(mean, variance.sqrt(), torch.randn_like(mean))
        kl = 0.5 * (
            (weight_variance - self.log_variance).sum()
            + self.mean.square().sum()
            + (bias_variance - self.bias_log_variance + self.bias_mean.square()).sum()
            - (self.mean.numel() + self.bias_mean.numel())
        )
        return functional.cross_entropy(outputs, targets) + kl / num_rows

    @torch.no_grad()
    def predict(self, features: Tensor, num_draws: int = NUM_DRAWS) -> ClassPrediction:
        """Average the softmax over draws of the outputs, two million numbers at a time."""
        probs, epistemic = [], []
        for rows in features.split(max(1, 2_000_000 // (num_draws * len(self.mean)))):
            mean, variance = self.outputs(rows)
            noise = torch.randn(num_draws, *mean.shape)
            draws = torch.addcmul(mean, variance.sqrt(), noise).softmax(-1)
            probs.append(draws.mean(0))
            epistemic.append(mutual_information(draws))
        return ClassPrediction(torch.cat(probs), torch.cat(epistemic))


def train(
    features: Tensor, targets: Tensor, num_classes: int, seed: int, num_epochs: int = NUM_EPOCHS
) -> MeanField:
    """Train for a fixed number of epochs."""
    torch.manual_seed(seed)
    layer = MeanField(features.shape[1], num_classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for index in shuffled(len(features), BATCH_SIZE, num_epochs, generator):
        optimizer.zero_grad()
        layer.loss(features[index], targets[index], len(features)).backward()
        optimizer.step()
    return layer


def fit(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Train, and give back the layer's prediction."""
    return train(features, targets, num_classes, seed).predict


def step(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make one optimiser step of the loop in `train`."""
    torch.manual_seed(seed)
    layer = MeanField(features.shape[1], num_classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, fused=True)
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))

    def run() -> None:
        index = next(batches)
        optimizer.zero_grad()
        layer.loss(features[index], targets[index], len(features)).backward()
        optimizer.step()

    return run


def step_compiled(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make the same step with the loss under `torch.compile` (needs a C++ compiler; compiled on the first call)."""
    torch.manual_seed(seed)
    layer = MeanField(features.shape[1], num_classes)
    loss = torch.compile(layer.loss)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, fused=True)
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))

    def run() -> None:
        index = next(batches)
        optimizer.zero_grad()
        loss(features[index], targets[index], len(features)).backward()
        optimizer.step()

    return run


# torch.compile needs a C++ compiler on a CPU.
_HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None

METHODS = (Method("hand-written torch loop", fit, step, note="mean-field, output-space draws, fused Adam"),)
COMPILED = Method("hand-written torch loop, torch.compile", fit, step_compiled)
STEPS = (*METHODS, COMPILED) if _HAS_COMPILER else METHODS
