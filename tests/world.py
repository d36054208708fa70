"""What a call must leave as it was: a record of the global state, and wrappers that compare it around every public call.

The record holds Pyro's store and handlers, modes of torch, default dtype and device, random states, filters of warnings, the
number of threads, the working directory, the open files, and the modes, buffers and hooks of the networks in the call.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine import runtime
from torch import nn

import bll_pyro
from bll_pyro.comparison import Stack
from bll_pyro.conformal import PredictionIntervals, PredictionSets
from bll_pyro.features.store import Features
from bll_pyro.fitting import Fit
from bll_pyro.ood import Detector
from bll_pyro.posterior import DrawsPosterior, GaussianPosterior
from bll_pyro.prediction import ClassPrediction, LabelPrediction, OrdinalPrediction, ValuePrediction

MODULES = ("priors", "likelihoods", "guides", "metrics", "conformal", "ood", "export", "plots")
CLASSES = (
    *(Fit, Features, Stack, PredictionSets, PredictionIntervals, Detector, DrawsPosterior, GaussianPosterior),
    *(ClassPrediction, LabelPrediction, OrdinalPrediction, ValuePrediction),
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def world(networks: tuple[nn.Module, ...] = ()) -> dict[str, Any]:
    """The global state, and that of some networks, in a form that can be compared."""
    store = pyro.get_param_store()
    numpy_state = np.random.get_state()
    return {
        "Pyro's parameter store": {
            name: (id(value), value._version) for name, value in store._params.items()
        },
        "Pyro's handlers": [id(handler) for handler in runtime._PYRO_STACK],
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "validation": torch.distributions.Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "default device": torch.empty(0).device,
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "Python's random state": random.getstate(),
        # torch 2.8 adds one about torch.distributed whenever it compiles
        "filters of warnings": [
            each for each in warnings.filters if getattr(each[3], "pattern", "") != "torch.distributed"
        ],
        "number of modules": len(sys.modules),
        "number of threads": torch.get_num_threads(),
        "working directory": os.getcwd(),
        "open files": open_files(),
        "modes of networks": [[part.training for part in each.modules()] for each in networks],
        "parameters and buffers of networks": [
            [(id(value), value._version) for value in [*each.parameters(), *each.buffers()]]
            for each in networks
        ],
        "gradients of networks": [
            [(p.requires_grad, id(p.grad)) for p in each.parameters()] for each in networks
        ],
        "hooks of networks": [
            [list(getattr(part, name)) for part in each.modules() for name in HOOKS] for each in networks
        ],
    }


def open_files() -> list[str]:
    """Regular files that the process has open, but for libraries, fonts of matplotlib, and what the system lends."""
    folder, found = "/proc/self/fd", []
    for number in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            path = os.readlink(f"{folder}/{number}")
        except OSError:  # the handle of the listing itself
            continue
        lent = (
            path.startswith(("/dev/", "/proc/", "/sys/")) or "loky" in path or path.endswith((".ttf", ".afm"))
        )
        if path.startswith("/") and not lent:
            found.append(path)
    return sorted(found)


def compare(before: dict[str, Any], after: dict[str, Any], call: str) -> None:
    """Fail where something differs, and say what."""
    changed = [name for name, value in before.items() if after[name] != value and name != "number of modules"]
    if "open files" in changed:  # a file that nobody reads any more is closed when it is collected
        gc.collect()
        if set(open_files()) <= set(before["open files"]):
            changed.remove("open files")
    if "filters of warnings" in changed and after["number of modules"] > before["number of modules"]:
        # a library that is imported for the first time may add filters of its own
        old, new = before["filters of warnings"], after["filters of warnings"]
        changed = [
            name for name in changed if name != "filters of warnings" or [e for e in new if e in old] != old
        ]
    assert not changed, f"{call} changed: " + "; ".join(
        name if "state" in name else f"{name}, {before[name]} to {after[name]}" for name in changed
    )


def networks_of(values: Any) -> tuple[nn.Module, ...]:
    """Networks among the arguments of a call, or held by them."""
    found = []
    for value in values:
        held = getattr(value, "backbone", None)
        found += [part for part in (value, held) if isinstance(part, nn.Module)]
    return tuple(found)


@contextmanager
def watched(call: str, networks: tuple[nn.Module, ...] = ()) -> Iterator[None]:
    """Compare the world before and after a block, also where it raises and the error is kept."""
    before = world(networks)
    try:
        yield
    except BaseException as error:
        kept = error  # as a notebook or pytest.raises does: suspended generators in its frames stay suspended
        compare(before, world(networks), f"{call}, which raised {type(error).__name__},")
        del kept
        raise
    compare(before, world(networks), call)


_DEPTH = threading.local()
_ELSEWHERE = {
    "running": 0,
    "begun": 0,
}  # calls from other threads, which change the state of the process as they run
_COUNTING = threading.Lock()


@contextmanager
def elsewhere() -> Iterator[None]:
    """Count a call from another thread than the main one."""
    with _COUNTING:
        _ELSEWHERE["running"] += 1
        _ELSEWHERE["begun"] += 1
    try:
        yield
    finally:
        with _COUNTING:
            _ELSEWHERE["running"] -= 1


def watching(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with the world compared around every call from outside the package, unless another thread calls, too."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            with elsewhere():
                return function(*args, **kwargs)
        if getattr(_DEPTH, "inside", False) or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        # load fills the network that it is given
        networks = () if name == "bll.load" else networks_of((*args, *kwargs.values()))
        _DEPTH.inside, said = True, name
        try:
            alone, begun, before = not _ELSEWHERE["running"], _ELSEWHERE["begun"], world(networks)
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                said = f"{name}, which raised {type(error).__name__},"
                raise
            finally:
                if alone and begun == _ELSEWHERE["begun"]:
                    compare(before, world(networks), said)
        finally:
            _DEPTH.inside = False

    return wrapper


def install() -> None:
    """Put the wrappers around all public functions and around the public methods of results."""
    for name in bll_pyro.__all__:
        value = getattr(bll_pyro, name)
        if inspect.isfunction(value) and name != "timm_backbone":  # which draws its weights, as torch does
            setattr(bll_pyro, name, watching(value, f"bll.{name}"))
    for room in MODULES:
        module = import_module(f"bll_pyro.{room}")
        for name in module.__all__:
            if inspect.isfunction(value := getattr(module, name)):
                setattr(module, name, watching(value, f"bll.{room}.{name}"))
    for owner in CLASSES:
        for name, value in list(vars(owner).items()):
            if (
                inspect.isfunction(value)
                and not name.startswith("_")
                and not inspect.isgeneratorfunction(value)
            ):
                setattr(owner, name, watching(value, f"{owner.__name__}.{name}"))
