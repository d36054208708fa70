"""Frozen passes, trainable parameters and train mode of a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[nn.Module]:
    """Run the block with `backbone` in eval mode and without gradients, and restore the mode of each submodule afterwards.

    Parameters and buffers do not change: BatchNorm layers use their running statistics and don't update them.
    """
    modes = [(part, part.training) for part in backbone.modules()]
    try:
        for part, _ in modes:
            part.training = False  # not by eval(), which a submodule may override
        with torch.no_grad():
            yield backbone
    finally:
        for part, mode in modes:
            part.training = mode


def trainable_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that joint training updates: those with `requires_grad`, which `unfreeze` of a Backbone sets."""
    return [parameter for parameter in backbone.parameters() if parameter.requires_grad]


def set_training(backbone: nn.Module) -> None:
    """Put the trainable submodules of `backbone` into train mode and the frozen ones into eval mode.

    A submodule is frozen if it has parameters and none of them is trainable, so BatchNorm layers of frozen submodules
    keep their running statistics. A submodule without parameters (dropout, pooling) gets the mode of its parent.
    Submodules that the backbone's own ``train()`` leaves in eval mode stay in eval mode.
    """
    backbone.train()
    _freeze(backbone, inherited=bool(trainable_parameters(backbone)))


def _freeze(part: nn.Module, inherited: bool) -> None:
    parameters = list(part.parameters())
    is_trainable = any(parameter.requires_grad for parameter in parameters) if parameters else inherited
    if not is_trainable:
        part.training = False
    for child in part.children():
        _freeze(child, is_trainable)
