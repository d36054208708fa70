"""What ``torch.vmap`` needs to run a Pyro program: random numbers that belong to one draw."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _FreshNumbers(TorchFunctionMode):
    """Make the random generators that fill a tensor in place return a fresh tensor instead.

    Distributions draw through ``torch.empty(shape).normal_()`` and its like. Inside ``torch.vmap`` such a tensor is
    shared by all draws and may not be filled; a fresh one belongs to each draw.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FILLERS:
            return func(*args, **kwargs)
        like, *rest = args
        return _FILLERS[func](
            lambda draw: draw(like.shape, dtype=like.dtype, device=like.device), *rest, **kwargs
        )


_FILLERS: dict[Any, Callable[..., Tensor]] = {
    torch.Tensor.normal_: lambda new, mean=0.0, std=1.0: mean + std * new(torch.randn),
    torch.Tensor.uniform_: lambda new, low=0.0, high=1.0: low + (high - low) * new(torch.rand),
    torch.Tensor.exponential_: lambda new, rate=1.0: -torch.log1p(-new(torch.rand)) / rate,
    torch.Tensor.cauchy_: lambda new, median=0.0, scale=1.0: (
        median + scale * torch.tan(math.pi * (new(torch.rand) - 0.5))
    ),
}


@contextmanager
def vectorised() -> Iterator[None]:
    """Set what ``torch.vmap`` needs: random numbers of its own for each draw, and no word about speed."""
    with warnings.catch_warnings(), _FreshNumbers():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield
