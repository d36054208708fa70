"""A moving average of all that is trained: parameters, and statistics such as those of BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """``a <- a + (1 - d_t) (p - a)`` with ``d_t = min(d, (1 + t) / (10 + t))``, so that the start is soon forgotten.

    Statistics in buffers are averaged with the weights that they were taken with; whole numbers, such as BatchNorm's count of
    batches, are not. The average of numbers in half precision is in float32, which has room for steps of ``1 - d``.

    Parameters
    ----------
    module
        Whose trainable parameters and floating-point buffers are averaged; it is not changed.
    decay
        d, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values = [wide(tensor).clone() for tensor in self.tensors()]

    def tensors(self) -> list[Tensor]:
        """What is averaged, as it is now."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return [t.detach() for t in (*trained, *self.module.buffers()) if t.is_floating_point()]

    @torch.no_grad()
    def update(self, num_done: int) -> None:
        """Go on after step t, the number of steps before it."""
        share = 1 - min(self.decay, (1 + num_done) / (10 + num_done))
        for value, tensor in zip(self.values, self.tensors(), strict=True):
            value.lerp_(wide(tensor), share)

    @torch.no_grad()
    def put(self) -> None:
        """Put the averages into the module for good."""
        for value, tensor in zip(self.values, self.tensors(), strict=True):
            tensor.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run a block with the averages in the module."""
        kept = [tensor.clone() for tensor in self.tensors()]
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self.tensors(), kept, strict=True):
                    tensor.copy_(value)


def wide(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it is in less."""
    return tensor.float() if tensor.element_size() < 4 else tensor
