"""The only room that touches global state: Pyro's parameter store and the random generators.

Pyro keeps trained values in one store for the whole process, and Pyro, torch's loaders and NumPy draw from
global generators. Everything bll_pyro does happens inside :func:`isolated`, so that two fits in turns equal the
same two alone, and the caller finds the world as it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch


@contextmanager
def isolated(seed: int | None = None, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Give the block an empty parameter store and random state of its own; put the caller's back afterwards.

    Parameters
    ----------
    seed
        Seeds torch (all devices), NumPy and Python inside the block. None keeps the caller's state as the
        starting point.
    dtype
        torch's default dtype inside the block, so that constants of priors and noise are made in the precision of
        the features; None leaves it.
    """
    default_dtype = torch.get_default_dtype()
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    try:
        with pyro.get_param_store().scope():
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            if dtype is not None:
                torch.set_default_dtype(dtype)
            yield
    finally:
        torch.set_default_dtype(default_dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a private random generator: the way to draw without touching global state."""
    return torch.Generator(device=device).manual_seed(seed)
