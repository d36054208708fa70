"""Processors on which the last bit of a product hangs on where its factors lie in memory."""

import torch
from torch import Tensor, nn


def hang_on_memory(network: nn.Module, rows: Tensor) -> bool:
    """Whether the outputs of the same rows differ here with the place in memory where the rows lie."""
    found = set()
    for start in range(16):
        room = torch.empty(rows.numel() + 16, dtype=rows.dtype)
        here = room[start : start + rows.numel()].view_as(rows).copy_(rows)
        found.add(network(here).detach().numpy().tobytes())
    return len(found) > 1
