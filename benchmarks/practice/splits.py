"""Small data sets of scikit-learn in random splits, and the loss of a fit on the test rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn

import bll_pyro as bll
from benchmarks import scores
from benchmarks.options import Options

NUM_TEST_ROWS = 800
LOADERS = {
    "digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer, "diabetes": load_diabetes,
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Training and test rows of a data set: inputs ``[N, D]``, float32, and targets ``[N]``."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    likelihood: Any

    def layer(self, scale: float | None = None, **settings: Any) -> Any:
        """A last layer with a Normal prior of this scale."""
        return bll.LastLayer(self.likelihood, bll.priors.Normal(scale), **settings)

    def through(self, network: Callable[[Tensor], Tensor]) -> "Split":
        """The same rows as features of a network."""
        with torch.no_grad():
            train, test = ((network(inputs), targets) for inputs, targets in (self.train, self.test))
        return replace(self, train=train, test=test)


def split_of(name: str, num_rows: int, seed: int, noise: float = 0.0) -> Split:
    """``num_rows`` training rows and up to 800 others; digits have 0 to 16 in a pixel, and may get Normal noise."""
    inputs, targets = LOADERS[name](return_X_y=True)
    random = np.random.default_rng(seed)
    if noise:
        inputs = inputs + random.normal(0, noise, inputs.shape)
    order = random.permutation(len(inputs))
    is_real = name == "diabetes"
    likelihood = (
        bll.likelihoods.Gaussian() if is_real else bll.likelihoods.Categorical(int(targets.max()) + 1)
    )
    rows = torch.tensor(inputs, dtype=torch.float32)
    labels = torch.tensor(targets, dtype=torch.float32 if is_real else torch.int64)
    train, test = order[:num_rows], order[num_rows : num_rows + NUM_TEST_ROWS]
    return Split((rows[train], labels[train]), (rows[test], labels[test]), likelihood)


def loss(fit: Any, split: Split) -> float:
    """Mean negative log probability of the test targets, nats."""
    inputs, targets = split.test
    prediction = fit.predict(inputs)
    if isinstance(split.likelihood, bll.likelihoods.Categorical):
        return scores.nll(prediction.probs, targets)
    return -float(prediction.log_prob(targets).double().mean())


def overconfidence(fit: Any, split: Split) -> float:
    """Mean confidence less accuracy on the test rows: above 0 where a fit is too sure."""
    probs = fit.predict(split.test[0]).probs
    return float(probs.max(-1).values.double().mean()) - scores.accuracy(probs, split.test[1])


def seeds(options: Options, most: int = 5) -> range:
    """Seeds of the splits: as many as there are rounds, or fewer where a fit takes long."""
    return range(min(options.num_runs, most))


def mean(values: list[float]) -> float:
    """Mean over the splits."""
    return float(np.mean(values))


def network(num_inputs: int, seed: int) -> nn.Sequential:
    """A small backbone: two layers, 64 and 32 units."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(num_inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())


def trained(rows: tuple[Tensor, Tensor], seed: int, num_steps: int = 400) -> tuple[nn.Sequential, nn.Linear]:
    """The backbone with a softmax head, trained on all rows at once by Adam."""
    inputs, labels = rows
    backbone = network(inputs.shape[1], seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(32, int(labels.max()) + 1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(num_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(backbone(inputs)), labels).backward()
        optimizer.step()
    return backbone.eval(), head
