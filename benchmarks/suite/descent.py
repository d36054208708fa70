"""The gradient steps that the plain methods and vbll's layers share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from benchmarks.competitors.batches import shuffled
from benchmarks.suite.budget import Budget


def descend(
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor], Tensor],
    num_rows: int,
    seed: int,
    budget: Budget,
    *,
    is_network: bool = False,
    clip_norm: float | None = None,
) -> None:
    """Adam with a rate that falls linearly to a thousandth; ``loss`` is that of the rows of these numbers."""
    weights = list(parameters)
    optimizer = torch.optim.Adam(weights, lr=budget.learning_rate, fused=True)
    num_epochs = budget.num_epochs(num_rows, is_network=is_network)
    batch_size = budget.network_batch_size if is_network else budget.batch_size
    num_steps = num_epochs * -(-num_rows // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, num_steps)
    for index in shuffled(num_rows, batch_size, num_epochs, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        loss(index).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(weights, clip_norm)
        optimizer.step()
        schedule.step()
