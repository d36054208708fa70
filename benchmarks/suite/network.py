"""A network with one hidden layer for values, and linear layers for values: the plain methods of regression.

All find the mode of a Normal likelihood with its own noise and N(0, 1) priors on the weights, in standardised units, by
Adam with a rate that falls linearly to zero.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.descent import descend
from benchmarks.suite.predictions import Normals
from benchmarks.suite.splits import NETWORK, Scaled, Split

WIDTH = 50
DROPOUT = 0.05  # of hidden units or features
HELD_OUT_SHARE = 0.1


class Net(nn.Module):
    """From inputs ``[N, D]`` to hidden features ``[N, 50]``, or the inputs themselves, and to means ``[N]``."""

    def __init__(self, num_inputs: int, *, has_hidden: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(num_inputs, WIDTH), nn.ReLU()) if has_hidden else nn.Identity()
        self.dropout = dropout
        self.last = nn.Linear(WIDTH if has_hidden else num_inputs, 1)
        self.log_noise = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Means; with dropout always drawn anew."""
        return self.last(functional.dropout(self.hidden(inputs), self.dropout))[:, 0]

    def loss(self, inputs: Tensor, targets: Tensor, num_rows: int) -> Tensor:
        """Negative log joint density per training row, up to a constant."""
        gap = (targets - self(inputs)) / self.log_noise.exp()
        squares = sum(p.square().sum() for name, p in self.named_parameters() if name != "log_noise")
        return 0.5 * gap.square().mean() + self.log_noise + 0.5 * squares / num_rows


def trained(
    rows: Tensor, targets: Tensor, seed: int, budget: Budget, *, is_network: bool, dropout: float = 0.0
) -> Net:
    """A network or a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(rows.shape[1], has_hidden=is_network, dropout=dropout)
        descend(
            net.parameters(),
            lambda index: net.loss(rows[index], targets[index], len(rows)),
            len(rows),
            seed,
            budget,
            is_network=is_network,
        )
    return net


class Fitted:
    """Networks in units of the training rows, whose means and noises are mixed."""

    def __init__(self, scaled: Scaled, nets: list[Net], noises: list[float], num_draws: int = 1) -> None:
        self.scaled, self.nets, self.noises, self.num_draws = scaled, nets, noises, num_draws

    @torch.no_grad()
    def __call__(self, features: np.ndarray) -> Normals:
        """Predict rows."""
        rows = torch.from_numpy(self.scaled.rows(features))
        means = [net(rows) for net in self.nets for _ in range(self.num_draws)]
        noises = np.repeat(self.noises, self.num_draws)[:, None]
        mean = torch.stack(means).double().numpy() * self.scaled.target_scale + self.scaled.target_center
        return Normals(mean, np.broadcast_to(noises * self.scaled.target_scale, mean.shape))


def tensors(split: Split) -> tuple[Scaled, Tensor, Tensor]:
    """The units of a split, and its training rows and targets in them."""
    scaled = Scaled.of(split)
    rows, targets = scaled.rows(split.features), scaled.values(split.targets)
    return scaled, torch.from_numpy(rows), torch.from_numpy(targets)


def point(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """The mode, with the noise of the training rows."""
    scaled, rows, targets = tensors(split)
    net = trained(rows, targets, seed, budget, is_network=split.kind == NETWORK)
    return Fitted(scaled, [net], [net.log_noise.exp().item()])


def tempered(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """The mode of nine tenths of the rows, with the noise of the rest: what a temperature is for values."""
    scaled, rows, targets = tensors(split)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    aside, rest = order.tensor_split([round(len(rows) * HELD_OUT_SHARE)])
    net = trained(rows[rest], targets[rest], seed, budget, is_network=split.kind == NETWORK)
    with torch.no_grad():
        noise = (targets[aside] - net(rows[aside])).square().mean().sqrt().item()
    return Fitted(scaled, [net], [noise])


def ensemble(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """Modes from several starts, each with its own noise (Lakshminarayanan et al. 2017)."""
    scaled, rows, targets = tensors(split)
    is_network = split.kind == NETWORK
    seeds = range(seed * 100, seed * 100 + budget.num_members)
    nets = [trained(rows, targets, one, budget, is_network=is_network) for one in seeds]
    return Fitted(scaled, nets, [net.log_noise.exp().item() for net in nets])


def dropout(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """Dropout before the last layer, in training and in prediction (Gal and Ghahramani 2016)."""
    scaled, rows, targets = tensors(split)
    net = trained(rows, targets, seed, budget, is_network=split.kind == NETWORK, dropout=DROPOUT)
    return Fitted(scaled, [net], [net.log_noise.exp().item()], budget.num_draws)


def hidden_features(split: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden features of the training and of the test rows, of a network trained on the former."""
    scaled, rows, targets = tensors(split)
    net = trained(rows, targets, seed, FULL, is_network=True)
    with torch.no_grad():
        return (
            net.hidden(rows).numpy(),
            net.hidden(torch.from_numpy(scaled.rows(split.parts["test"]))).numpy(),
        )
