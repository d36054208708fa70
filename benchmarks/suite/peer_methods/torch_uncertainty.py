"""torch-uncertainty: its `BayesLinear` (mean-field, prior and start as it has them) under its `ELBOLoss` with weight 1/N."""

import torch
from torch import Tensor

from benchmarks.competitors.batches import shuffled
from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.splits import Split


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """A softmax head, one draw of the weights a step."""
    from torch_uncertainty.layers.bayesian import BayesLinear  # type: ignore[import-not-found]
    from torch_uncertainty.losses import ELBOLoss  # type: ignore[import-not-found]

    scaled, rows, labels = heads.tensors(split)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = BayesLinear(rows.shape[1], split.num_classes)
        loss = ELBOLoss(layer, torch.nn.CrossEntropyLoss(), kl_weight=1.0 / len(rows), num_samples=1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=budget.learning_rate)
        order = torch.Generator().manual_seed(seed)
        for index in shuffled(len(rows), budget.batch_size, budget.num_epochs(len(rows)), order):
            optimizer.zero_grad()
            loss(rows[index], labels[index]).backward()
            optimizer.step()

    def draws(some: Tensor) -> list[Tensor]:
        return [layer(some) for _ in range(budget.num_draws)]

    return heads.on_rows(scaled, seed, heads.mixed(draws))
