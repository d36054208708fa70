"""The only module that touches global state: Pyro's store and handlers, random generators, modes of torch, warnings, signals.

Pyro keeps parameters and handlers in one place for the whole process, and Pyro, torch's loaders and NumPy draw from global
generators. bll_pyro runs inside :func:`isolated`, so that interleaved fits give the same results as separate ones, and
the caller's global state is unchanged. This state exists once in a process, so threads take turns.

A generator must not yield inside one of these blocks. Its caller would go on in our state, and the caller's own would come
back at any later time, when the generator ends or is collected (``tests/test_scope.py`` looks for such places).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from types import FrameType
from typing import Any

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
def own_python_random() -> Iterator[None]:
    """Run a block, and put Python's random state back: clients of the network draw their waiting times from it."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


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
            _seed_torch(int(seed))
        if dtype is not None:
            torch.set_default_dtype(dtype)
        yield


def _seed_torch(seed: int) -> None:
    """``torch.manual_seed``, which takes half a millisecond for devices that are not there: it keeps a stack trace for each."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


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
        # in torch 2.8 get_default_device fails after set_default_device(None)
        if torch.empty(0).device.type != "cpu":
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


def random_state() -> dict[str, Any]:
    """The state of the global generators of torch (all devices), NumPy and Python, as tensors and plain data."""
    version, keys, cached = random.getstate()
    name, numbers, *rest = np.random.get_state()
    on_devices = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_devices else [],
        "numpy": [name, torch.from_numpy(numbers.astype(np.int64)), rest],
        "python": [version, torch.tensor(keys), cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put a state of :func:`random_state` back, inside an :func:`isolated` block."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, numbers, rest = state["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    version, keys, cached = state["python"]
    random.setstate((version, tuple(keys.tolist()), cached))


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


class Stop:
    """Whether a block that :func:`stopping_late` runs was asked to stop, by Ctrl-C or by SIGTERM."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def now(self, message: str) -> None:
        """Stop: as KeyboardInterrupt with a message, or as SIGTERM does."""
        number, self.signal = self.signal, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def stopping_late() -> Iterator[Stop]:
    """Run a block that looks itself, where its state is whole, whether it was asked to stop; asked twice it stops at once.

    Signals reach the main thread only, and handlers that are not Python's own stay as they are: there, and in other threads,
    an interrupt is what it is anywhere.
    """
    stop, owner, before = Stop(), os.getpid(), dict[int, Any]()

    def ask(number: int, _: FrameType | None) -> None:
        if (
            stop.signal is not None or os.getpid() != owner
        ):  # the second time, or in a process that was forked
            stop.signal = None
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        stop.signal = number
        if sys.stderr.isatty():
            os.write(2, b"\nstopping after this step; once more stops at once\n")

    if threading.current_thread() is threading.main_thread():
        own: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in own.items():
            if signal.getsignal(number) == handler:
                before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop.signal is not None:  # it came when the block looked no more
            signal.raise_signal(stop.signal)
