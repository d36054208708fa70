"""What of a backbone moves and what stands still: frozen passes, trainable parameters, train mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[nn.Module]:
    """Run the block with `backbone` in eval mode and without gradients, and give each part its mode back afterwards.

    Parameters and buffers stay bit-identical: BatchNorm layers use their running statistics and don't update them.
    """
    modes = [(part, part.training) for part in backbone.modules()]
    try:
        for part, _ in modes:
            part.training = False  # set one by one: a part's own train() may refuse
        with torch.no_grad():
            yield backbone
    finally:
        for part, mode in modes:
            part.training = mode


def trainable_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that joint training moves: those with `requires_grad`; `unfreeze` of a Backbone sets it."""
    return [parameter for parameter in backbone.parameters() if parameter.requires_grad]


def set_training(backbone: nn.Module) -> None:
    """Put the unfrozen parts of `backbone` into train mode and the frozen ones into eval mode.

    A part is frozen when it has parameters and none of them is trainable, so the BatchNorm layers of frozen parts keep
    their running statistics. A part without parameters (dropout, pooling) goes with the part that contains it. What the
    backbone's own ``train()`` leaves in eval mode stays there.
    """
    backbone.train()
    _freeze(backbone, inherited=bool(trainable_parameters(backbone)))


def _freeze(part: nn.Module, inherited: bool) -> None:
    parameters = list(part.parameters())
    moves = any(parameter.requires_grad for parameter in parameters) if parameters else inherited
    if not moves:
        part.training = False
    for child in part.children():
        _freeze(child, moves)
