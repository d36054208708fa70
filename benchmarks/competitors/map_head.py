"""Point estimates: the network's own head, a softmax head by L-BFGS or Adam, and one with a tuned temperature.

All but the first are the mode under N(0, 1) priors, on raw features. Adam with a rate that falls to zero comes to the
same test score as 200 iterations of L-BFGS in a quarter of the time, so it is the head that the methods take which
need one.
"""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.competitors.batches import endless, shuffled
from benchmarks.method import ClassPrediction, Method, Predict, Step

LEARNING_RATE = 1e-2
BATCH_SIZE = 512
NUM_EPOCHS = 20
PRIOR_PRECISION = 1.0
MAX_ITERATIONS = 200
HELD_OUT_SHARE = 1 / 12  # 5,000 of 60,000 rows for the temperature


def _loss(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, num_rows: int) -> Tensor:
    """Negative log joint density per training row, up to a constant."""
    penalty = 0.5 * PRIOR_PRECISION * (weight.square().sum() + bias.square().sum())
    return functional.cross_entropy(functional.linear(features, weight, bias), targets) + penalty / num_rows


def map_by_lbfgs(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Find the mode by full-batch L-BFGS; weight [K, D] and bias [K]."""
    weight = torch.zeros(num_classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(features, targets, weight, bias, len(features))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def map_by_adam(
    features: Tensor, targets: Tensor, num_classes: int, seed: int, *, num_epochs: int = NUM_EPOCHS
) -> tuple[Tensor, Tensor]:
    """Find the mode by some epochs of fused Adam, its rate falling linearly to zero; weight [K, D] and bias [K]."""
    weight = torch.zeros(num_classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE, fused=True)
    num_steps = num_epochs * -(-len(features) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for index in shuffled(len(features), BATCH_SIZE, num_epochs, generator):
        optimizer.zero_grad()
        _loss(features[index], targets[index], weight, bias, len(features)).backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def _softmax(weight: Tensor, bias: Tensor, temperature: float = 1.0) -> Predict:
    def predict(rows: Tensor) -> ClassPrediction:
        return ClassPrediction((functional.linear(rows, weight, bias) / temperature).softmax(-1))

    return predict


def fit(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Fit a softmax head by L-BFGS; nothing in it is random."""
    return _softmax(*map_by_lbfgs(features, targets, num_classes))


def fit_by_adam(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Fit a softmax head by Adam."""
    return _softmax(*map_by_adam(features, targets, num_classes, seed))


def fit_tempered(features: Tensor, targets: Tensor, num_classes: int, seed: int) -> Predict:
    """Fit a softmax head on part of the rows and one temperature on the rest."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order.tensor_split([max(1, round(len(features) * HELD_OUT_SHARE))])
    weight, bias = map_by_adam(features[kept], targets[kept], num_classes, seed)
    logits = functional.linear(features[held_out], weight, bias)
    return _softmax(weight, bias, temperature_of(logits, targets[held_out]))


def temperature_of(logits: Tensor, targets: Tensor) -> float:
    """The temperature of the least cross-entropy of held-out rows (Guo et al. 2017); logits ``[N, K]``."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits / log_temperature.exp(), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_temperature.detach().exp().item()


def given_head(weight: Tensor, bias: Tensor) -> Method:
    """Wrap the last layer that came with the network: nothing is fitted."""
    return Method("the network's own softmax head", lambda *_: _softmax(weight, bias), note="as trained")


def step(features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int) -> Step:
    """Make one step of a plain softmax head with fused Adam: the floor for every Bayesian step."""
    head = torch.nn.Linear(features.shape[1], num_classes)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE, fused=True)
    batches = endless(len(features), batch_size, torch.Generator().manual_seed(seed))

    def run() -> None:
        index = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(head(features[index]), targets[index]).backward()
        optimizer.step()

    return run


METHODS = (
    Method("softmax head, L-BFGS", fit, note="MAP under N(0, 1), at most 200 iterations"),
    Method("softmax head, Adam", fit_by_adam, step, note="MAP under N(0, 1), falling rate"),
    Method(
        "softmax head + temperature", fit_tempered, note="Adam; temperature from 1/12 of the rows, held out"
    ),
)
STEPS = (Method("softmax head (MAP), no uncertainty", fit, step),)
