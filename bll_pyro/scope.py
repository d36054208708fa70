"""The only module that touches global state: Pyro's parameter store and the random generators.

Pyro keeps parameters in one store for the whole process, and Pyro, torch's loaders and NumPy draw from global
generators. bll_pyro runs inside :func:`isolated`, so that interleaved fits give the same results as separate ones, and
the caller's global state is unchanged.
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
    """Run a block with an empty parameter store and its own random state, and restore the caller's afterwards.

    Parameters
    ----------
    seed
        Seed of torch (all devices), NumPy and Python inside the block; None starts from the caller's state.
    dtype
        torch's default dtype inside the block, so that constants of priors and noise get the dtype of the features;
        None keeps the caller's.
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
    """A random generator of its own, for draws that do not touch global state."""
    return torch.Generator(device=device).manual_seed(seed)
