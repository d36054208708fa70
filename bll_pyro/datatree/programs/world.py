"""``undisturbed``: a world for the runs of a conversion, which leaves the caller's as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bll_pyro.datatree.programs.program import Program
from bll_pyro.scope import isolated


@contextmanager
def undisturbed(programs: Sequence[Program], seed: int) -> Iterator[None]:
    """Run programs without leaving a trace: caller's parameters inside, caller's world unchanged outside.

    The parameter store holds the caller's entries, so that trained values are found; random generators are seeded and
    put back; modules of the programs are in eval mode; distributions don't check their arguments, since draws at the
    edge of a support are legal (MCMC makes them; data are checked by the survey).

    Raises
    ------
    ValueError
        If a program makes a parameter from its initial value, since then it was never trained with this store; or if a
        module and the store disagree about a parameter.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    owners = {id(owner): owner for program in programs for owner in program.modules}
    own = {name for owner in owners.values() for name in _own_parameters(owner, state["params"])}
    # A module reads its parameters from the store where it finds them there, and would be changed.
    outside = {part: {k: v for k, v in entries.items() if k not in own} for part, entries in state.items()}
    modules = {id(module): module for owner in owners.values() for module in owner.modules()}
    flags = {key: module.training for key, module in modules.items()}
    try:
        with isolated(seed), pyro.validation_enabled(False):
            store.set_state(outside)
            for module in modules.values():
                module.training = False
            yield
            made = sorted(
                name
                for name, value in store.named_parameters()
                if name not in outside["params"] and not isinstance(value, nn.Parameter)
            )
            if made:
                raise ValueError(
                    f"the parameters {made} are not in Pyro's parameter store, so that the program would start from "
                    "their initial values; expected trained ones. Convert before the store is cleared, or inside the "
                    "`with pyro.get_param_store().scope(state):` that it was trained in."
                )
    finally:
        for key, module in modules.items():
            module.training = flags[key]


def _own_parameters(module: nn.Module, stored: dict[str, Tensor]) -> list[str]:
    """Return the names by which Pyro's store knows a module's parameters; refuse a store that holds other values.

    Pyro lets the store win, silently: two guides of one class would share the values of the one trained last.
    """
    names = []
    for part in module.modules():
        if not isinstance(part, PyroModule):
            continue  # its parameters are known by the module that holds it, and are not changed
        for name, value in part.named_parameters(recurse=False):
            full = ".".join(filter(None, [part._pyro_name, name.removesuffix("_unconstrained")]))
            other = stored.get(full)
            if other is not None and other is not value and not torch.equal(other, value):
                raise ValueError(
                    f"the parameter {full!r} of a {type(module).__name__} differs from the one of this name in Pyro's "
                    "parameter store, which belongs to another module of the same name, or was loaded later. Clear "
                    "the store (pyro.clear_param_store()) to use the module's own values, or run the module once to "
                    "take over the store's."
                )
            names.append(full)
    return names
