"""Which site a loss that is not finite comes from: the fit goes on from its last good state, looked at after every step.

While a fit runs it is not looked at in every step, since that would wait for the device each time. Once it is lost, its
parameters are all NaN, and every site with them; so the way there has to be gone again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

NUM_PASSES = 3  # over the rows, at most

Attempt = Callable[[], tuple[Tensor, Tensor, tuple[Any, ...]]]
"""Puts gradients into the parameters; gives the loss, the features, and what the Pyro program takes."""


def snapshot(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Copy of the parameters."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def restore(parameters: Iterable[Tensor], state: list[Tensor]) -> None:
    """Put a copy back."""
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers are finite."""
    return all(bool(torch.isfinite(one).all()) for one in tensors if one is not None)


def explain_nonfinite(
    guide: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer, attempts: Iterable[Attempt]
) -> str:
    """Step until something is not finite, and say what it is; the parameters are left as they were before that step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for attempt in attempts:
        before = snapshot(parameters)
        loss, features, arguments = attempt()
        if not all_finite([features]):
            return "the features of the backbone are not finite: give it a smaller learning rate"
        if not all_finite([loss]):
            return f"{nonfinite_site(guide, model, arguments)}: use a smaller learning rate, standardize=True, or a tighter prior"
        if not all_finite(p.grad for p in parameters):
            return f"{nonfinite_gradient(guide, model)}: use a smaller learning rate or clip_norm, or a tighter prior"
        optimizer.step()
        if not all_finite(parameters):
            restore(parameters, before)
            rate = optimizer.param_groups[0]["lr"]
            return f"a step with learning rate {rate:g} leaves the range of the numbers: use a smaller one"
    return "it did not come again from there: use a smaller learning rate or clip_norm"


@torch.no_grad()
def nonfinite_site(guide: nn.Module, model: nn.Module, arguments: tuple[Any, ...]) -> str:
    """The first site of the program whose value or log density is not finite, at one draw of the guide."""
    with pyro.validation_enabled(False):
        drawn = poutine.trace(guide).get_trace(*arguments)
        program = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*arguments)
        program.compute_log_prob()
    for name, node in program.nodes.items():
        if node["type"] != "sample":
            continue
        if not all_finite([node["value"]]):
            return f"the value of site {name!r} is not finite"
        if not all_finite([node["log_prob"]]):
            return f"the log density of site {name!r} is not finite"
    return "the log densities of all sites are finite for one draw and not for others"


def nonfinite_gradient(guide: nn.Module, model: nn.Module) -> str:
    """The first parameter whose gradient is not finite."""
    named = [*guide.named_parameters(), *model.named_parameters()]
    name = next((name for name, p in named if not all_finite([p.grad])), "a weight of the backbone")
    return f"the slope of the loss in {name!r} is not finite"
