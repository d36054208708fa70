"""The site from which a loss comes that is not finite.

A fit does not look at every step, since that would wait for the device each time. When the loss is found not finite, all
parameters are NaN already, and so is every site. The training therefore goes on from its last good state, and every step is
looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from bll_pyro.inference.svi.objective import all_finite, restore, snapshot
from bll_pyro.optimizers import Optimizer
from bll_pyro.scope import without_validation

NUM_PASSES = 3  # most passes over the rows

Attempt = Callable[[], tuple[Tensor, Tensor, tuple[Any, ...]]]
"""Puts gradients into the parameters; returns the ELBO estimate, the features, and what the Pyro program takes."""


def explain_nonfinite(
    guide: nn.Module, model: nn.Module, optimizer: Optimizer, attempts: Iterable[Attempt]
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
    return "it stayed finite when training went on from there: use a smaller learning rate or clip_norm"


@torch.no_grad()
def nonfinite_site(guide: nn.Module, model: nn.Module, arguments: tuple[Any, ...]) -> str:
    """The first site of the program whose value or log density is not finite, at one draw of the guide."""
    with without_validation():
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
