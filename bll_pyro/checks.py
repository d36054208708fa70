"""Checks of single values in declarations and arguments: positive numbers, shares, counts, switches.

Each raises ``Owner(name=...): expected ..., got ...; remedy``, and returns the value, numbers of NumPy's as plain
ones. Those of a declaration run in its ``__post_init__``, so that a wrong value fails where it is declared.
"""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Any

import numpy as np


def plain_numbers(value: Any) -> Any:
    """A value whose numbers, also in lists, tuples and dictionaries, are Python's own, so that they print and can be saved."""
    kind = type(value)
    if kind in (float, int, bool):
        return value
    if kind in (list, tuple):
        return kind(plain_numbers(part) for part in value)
    if kind is dict:
        return {name: plain_numbers(part) for name, part in value.items()}
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return operator.index(value)
    return float(value) if isinstance(value, Real) else value


def is_number(value: object, above: float = 0.0, below: float = math.inf) -> bool:
    """Whether a value is a number strictly between two others."""
    return isinstance(value, Real) and above < float(value) < below


def positive(value: object, name: str, owner: str, remedy: str = "", *, strict: bool = False) -> float:
    """Raise if a value is not a positive finite number; if ``strict``, ``True`` is none either."""
    if not is_number(value) or (strict and isinstance(value, bool)):
        raise ValueError(message(name, owner, "a positive number", value, remedy))
    number: float = plain_numbers(value)
    return number


def positive_or_none(value: object, name: str, owner: str, remedy: str = "") -> float | None:
    """Raise if a value is neither None nor a positive finite number."""
    return None if value is None else positive(value, name, owner, remedy)


def share(value: object, name: str, owner: str, remedy: str = "") -> float:
    """Raise if a value is not a number strictly between 0 and 1."""
    if not is_number(value, 0.0, 1.0):
        raise ValueError(message(name, owner, "a number between 0 and 1", value, remedy))
    number: float = plain_numbers(value)
    return number


def count(value: object, name: str, owner: str, least: int = 1, remedy: str = "") -> int:
    """Raise if a value is not a whole number from ``least`` on."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(message(name, owner, f"a whole number >= {least}", value, remedy))
    return operator.index(value)


def switch(value: object, name: str, owner: str) -> bool:
    """Raise if a value is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(message(name, owner, "True or False", value))
    return bool(value)


def device(value: object, owner: str) -> None:
    """Raise if a value is not None and torch cannot make tensors there."""
    import torch

    if value is None:
        return
    try:
        torch.empty(0, device=value)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError) as error:
        expected = 'a device that torch has here, such as "cpu" or "cuda:0"'
        raise ValueError(
            message("device", owner, expected, value, "None takes that of the backbone")
        ) from error


def fitted(value: object, owner: str) -> None:
    """Raise if a value is not a fit."""
    if not hasattr(value, "posterior") or not hasattr(value, "rows"):
        raise TypeError(f"{owner}: expected a fit, the result of bll.fit(...), got {type(value).__name__}")


def message(name: str, owner: str, expected: str, value: object, remedy: str = "") -> str:
    """Text of the error about one argument."""
    return f"{owner}({name}=...): expected {expected}, got {value!r}" + (f"; {remedy}" if remedy else "")
