"""probly: a head made Bayesian by its `Bayesian` transformation, under its `ELBOLoss` with weight 1/N."""

import torch
from torch import Tensor

from benchmarks.competitors.batches import shuffled
from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.splits import Split


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """A softmax head, one draw of the weights a step."""
    from probly.losses import ELBOLoss  # type: ignore[import-not-found]
    from probly.representation.bayesian import Bayesian  # type: ignore[import-not-found]

    scaled, rows, labels = heads.tensors(split)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Bayesian(torch.nn.Sequential(torch.nn.Linear(rows.shape[1], split.num_classes)))
        loss = ELBOLoss(kl_penalty=1.0 / len(rows))
        optimizer = torch.optim.Adam(model.parameters(), lr=budget.learning_rate)
        order = torch.Generator().manual_seed(seed)
        for index in shuffled(len(rows), budget.batch_size, budget.num_epochs(len(rows)), order):
            optimizer.zero_grad()
            loss(model(rows[index], logits=True), labels[index], model.kl_divergence).backward()
            optimizer.step()

    def draws(some: Tensor) -> list[Tensor]:
        return [model(some, logits=True) for _ in range(budget.num_draws)]

    return heads.on_rows(scaled, seed, heads.mixed(draws))
