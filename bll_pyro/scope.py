"""The only module that touches global state: Pyro's store and handlers, random generators, modes of torch, warnings.

Pyro keeps parameters and handlers in one place for the whole process, and Pyro, torch's loaders and NumPy draw from global
generators. bll_pyro runs inside :func:`isolated`, so that interleaved fits give the same results as separate ones, and
the caller's global state is unchanged. This state exists once in a process, so threads take turns.

A generator must not yield inside one of these blocks. Its caller would go on in our state, and the caller's own would come
back at any later time, when the generator ends or is collected (``tests/test_scope.py`` looks for such places).
"""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral

import numpy as np
import pyro
import torch
from pyro.poutine import runtime

TURN = threading.RLock()

if hasattr(os, "register_at_fork"):
    # a fork has one thread, and would wait for ever for one that it does not have
    os.register_at_fork(after_in_child=lambda: globals().update(TURN=threading.RLock()))

SEEDS = 2**64  # number of seeds that torch knows


@contextmanager
def isolated(seed: int | None = None, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Run a block with an empty parameter store and its own random state, and restore the caller's afterwards.

    The block has no handler of Pyro around it, and the modes of :func:`own_modes`. One thread at a time is inside; a thread that
    is inside already does not wait.

    Parameters
    ----------
    seed
        Seed of torch (all devices), NumPy and Python inside the block; None starts from the caller's state.
    dtype
        torch's default dtype inside the block, so that constants of priors and noise get the dtype of the features;
        None keeps the caller's.
    """
    if seed is not None and not (isinstance(seed, Integral) and 0 <= seed < SEEDS):
        raise wrong_seed(seed)
    with TURN, ExitStack() as after:  # everything is put back, though one of the steps may fail
        after.callback(torch.set_default_dtype, torch.get_default_dtype())
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())
        after.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            after.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        after.enter_context(own_store())
        after.enter_context(own_modes())
        if seed is not None:
            random.seed(int(seed))  # neither takes a number of NumPy's
            np.random.seed(seed % 2**32)
            torch.manual_seed(int(seed))
        if dtype is not None:
            torch.set_default_dtype(dtype)
        yield


@contextmanager
def own_store() -> Iterator[None]:
    """Run a block with an empty parameter store and no handler of Pyro around it; random numbers are the caller's."""
    with TURN, ExitStack() as after:
        after.callback(runtime._PYRO_STACK.__setitem__, slice(None), runtime._PYRO_STACK[:])
        runtime._PYRO_STACK.clear()
        after.enter_context(pyro.get_param_store().scope())
        yield


@contextmanager
def own_modes(gradients: bool = True) -> Iterator[None]:
    """Run a block in the modes of torch that the library counts on, whatever is on around it; also a decorator.

    Gradients are on or off as given. Inference mode is off, since what is kept must serve later calls with gradients. Autocast
    is off: half precision is not enough for a posterior. New tensors are on the CPU if no other device is named.
    """
    with ExitStack() as after:
        after.enter_context(torch.inference_mode(False))
        after.enter_context(torch.set_grad_enabled(gradients))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                after.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            after.enter_context(torch.device("cpu"))
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one core: the arrays are small, and several chains or simulations may run side by side."""
    with TURN:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def without_warnings(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Run a block without warnings of a category whose text begins with a pattern."""
    with TURN, warnings.catch_warnings():  # the list of filters belongs to the process
        warnings.filterwarnings("ignore", message, category)
        yield


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own, for draws that do not touch global state."""
    if not (isinstance(seed, Integral) and 0 <= seed < SEEDS):
        raise wrong_seed(seed)
    return torch.Generator(device=device).manual_seed(int(seed))


def wrong_seed(value: object) -> ValueError:
    """The error about a seed that torch would not take."""
    return ValueError(
        f"seed: expected a whole number from 0 to 2**64 - 1, got {value!r}; the same seed gives the same result"
    )


_VALIDATION_LOCK = threading.Lock()
_VALIDATION: list[tuple[bool, ...]] = []  # the caller's settings, once for each block that runs in any thread


@contextmanager
def without_validation() -> Iterator[None]:
    """Build and use distributions without checks of their arguments, which have no place inside an optimiser or a vmap.

    The settings of torch and Pyro are one for the process. So the first block to begin keeps them, and the last to end puts
    them back.
    """
    parts = (pyro.distributions, pyro.infer, pyro.poutine)
    with _VALIDATION_LOCK:
        of_torch = torch.distributions.Distribution._validate_args  # which Pyro sets, and others too
        current = (of_torch, *(part.is_validation_enabled() for part in parts))
        _VALIDATION.append(_VALIDATION[0] if _VALIDATION else current)
        pyro.enable_validation(False)
    try:
        yield
    finally:
        with _VALIDATION_LOCK:
            caller = _VALIDATION.pop()
            if not _VALIDATION:
                for part, setting in zip(parts, caller[1:], strict=True):
                    part.enable_validation(setting)
                torch.distributions.Distribution.set_default_validate_args(caller[0])
