"""Plain Pyro, as its tutorials write it: sampled weights of the last layer, `AutoDiagonalNormal`, `Trace_ELBO`, Adam.

Classes: `benchmarks.competitors.plain_pyro`. Values: N(0, 1) weights and a LogNormal noise; hidden layers, where there are
any, are parameters that the same optimiser trains.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import Tensor, nn

from benchmarks.competitors import plain_pyro
from benchmarks.competitors.batches import shuffled
from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.network import WIDTH, tensors
from benchmarks.suite.predictions import Normals
from benchmarks.suite.splits import NETWORK, Split


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """A softmax head, its draws one after another."""
    scaled, rows, labels = heads.tensors(split)
    with torch.random.fork_rng():
        _, predict = plain_pyro.train(
            rows, labels, split.num_classes, seed, num_epochs=budget.num_epochs(len(rows))
        )
    return heads.on_rows(scaled, seed, predict)


class Regression(nn.Module):
    """The model: a hidden layer or none, weights of the last layer, and the noise."""

    def __init__(self, num_inputs: int, num_rows: int, *, has_hidden: bool) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(num_inputs, WIDTH), nn.ReLU()) if has_hidden else nn.Identity()
        self.num_features, self.num_rows = WIDTH if has_hidden else num_inputs, num_rows

    def forward(self, rows: Tensor, targets: Tensor | None = None) -> Tensor:
        """Means; the targets are observed where they are given."""
        pyro.module("hidden", self.hidden)
        features = self.hidden(rows)
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([self.num_features]).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        mean = (features * weight).sum(-1) + bias
        size = len(rows) if targets is None else self.num_rows
        with pyro.plate("data", size, subsample=torch.arange(len(rows))):
            pyro.sample("y", dist.Normal(mean, noise), obs=targets)
        return mean


def values(split: Split, seed: int, budget: Budget = FULL) -> object:
    """A linear layer, or a network with its last layer."""
    scaled, rows, targets = tensors(split)
    is_network = split.kind == NETWORK
    batch_size = budget.network_batch_size if is_network else budget.batch_size
    with torch.random.fork_rng(), pyro.get_param_store().scope() as store:
        pyro.set_rng_seed(seed)
        model = Regression(rows.shape[1], len(rows), has_hidden=is_network)
        guide = AutoDiagonalNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": budget.learning_rate}), Trace_ELBO())
        num_epochs = budget.num_epochs(len(rows), is_network=is_network)
        for index in shuffled(len(rows), batch_size, num_epochs, torch.Generator().manual_seed(seed)):
            svi.step(rows[index], targets[index])

    def predict(features: np.ndarray) -> Normals:
        with torch.random.fork_rng(), pyro.get_param_store().scope(store), torch.no_grad():
            pyro.set_rng_seed(seed)
            predictive = Predictive(
                model, guide=guide, num_samples=budget.num_draws, return_sites=("_RETURN", "noise")
            )
            draws = predictive(torch.from_numpy(scaled.rows(features)))
        mean = draws["_RETURN"].double().numpy() * scaled.target_scale + scaled.target_center
        noise = draws["noise"].double().numpy().reshape(-1, 1) * scaled.target_scale
        return Normals(mean, np.broadcast_to(noise, mean.shape))

    return predict
