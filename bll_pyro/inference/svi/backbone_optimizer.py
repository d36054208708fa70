"""The optimizers of joint training: Adam for the guide, one of choice for the backbone, and a scheduler of torch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bll_pyro.inference.svi.backbone_training import BackboneTraining
from bll_pyro.inference.svi.parameter_groups import backbone_groups
from bll_pyro.optimizers import Optimizer

LENGTHS = ("num_steps", "total_steps", "T_max", "num_training_steps")  # names of a schedule's length


class Together(torch.optim.Optimizer):
    """The optimizers of guide and backbone as one: for clipping, for a scaler of gradients, and for what saves their state.

    Their groups stand in ``param_groups``, those of the guide first.
    """

    def __init__(self, guide: Optimizer, backbone: torch.optim.Optimizer) -> None:
        self.parts = guide, backbone
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put states back."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # loading replaces the groups; whoever holds this list sees the new ones
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


def made_optimizer(backbone: nn.Module, rate: float, options: BackboneTraining) -> torch.optim.Optimizer:
    """The optimizer of a backbone, with its groups; ValueError or TypeError if its factory makes none that will do."""
    groups = backbone_groups(backbone, rate, options.layer_decay, options.weight_decay)
    factory = options.made_by
    owner = "BackboneTraining(optimizer=...)"
    try:
        made = factory.found()(groups, lr=rate, **factory.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{owner}: expected what makes an optimizer of parameter groups when called as factory(groups, lr=...), got {factory}: "
            f"{error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"{owner}: expected a torch.optim.Optimizer, got {type(made).__name__} from {factory}"
        )
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{owner}: expected an optimizer that steps along given gradients, got {type(made).__name__}, which evaluates the loss "
            'again and again; take "adamw" or "sgd"'
        )
    if options.weight_decay and "weight_decay" not in made.defaults:
        raise ValueError(
            f"BackboneTraining(weight_decay={options.weight_decay!r}): expected an optimizer with weight decay, got "
            f'{type(made).__name__}, which has none; take "adamw"'
        )
    return made


def made_scheduler(
    optimizer: torch.optim.Optimizer, options: BackboneTraining, num_steps: int
) -> LRScheduler | None:
    """The scheduler of a factory, None for a schedule with a name; errors as of :func:`made_optimizer`."""
    factory = options.schedule
    if isinstance(factory, str):
        return None
    owner = "BackboneTraining(schedule=...)"
    make = factory.found()
    given = dict(factory.arguments)
    for name in inspect.signature(make).parameters.keys() & set(LENGTHS) - given.keys():
        given[name] = num_steps
    try:
        made = make(optimizer, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{owner}: expected what makes a scheduler when called as factory(optimizer), got {factory}: {error}"
        ) from error
    if isinstance(made, ReduceLROnPlateau) or not isinstance(made, LRScheduler):
        raise TypeError(
            f"{owner}: expected a torch.optim.lr_scheduler.LRScheduler that steps without a loss, got {type(made).__name__} from "
            f"{factory}"
        )
    return made
