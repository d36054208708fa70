"""Checks of the single values in a declaration: positive numbers, shares, counts, switches.

Each raises ``Owner(name=...): expected ..., got ...; remedy`` and returns nothing. They run in ``__post_init__``, so that a wrong
value fails where it is declared.
"""

from __future__ import annotations

import math


def is_number(value: object, above: float = 0.0, below: float = math.inf) -> bool:
    """Whether a value is a number strictly between two others."""
    return isinstance(value, (int, float)) and bool(above < value < below)


def positive(value: object, name: str, owner: str, remedy: str = "", *, strict: bool = False) -> None:
    """Raise if a value is not a positive finite number; if ``strict``, ``True`` is none either."""
    if not is_number(value) or (strict and isinstance(value, bool)):
        raise ValueError(message(name, owner, "a positive number", value, remedy))


def positive_or_none(value: object, name: str, owner: str, remedy: str = "") -> None:
    """Raise if a value is neither None nor a positive finite number."""
    if value is not None:
        positive(value, name, owner, remedy)


def share(value: object, name: str, owner: str, remedy: str = "") -> None:
    """Raise if a value is not a number strictly between 0 and 1."""
    if not is_number(value, 0.0, 1.0):
        raise ValueError(message(name, owner, "a number between 0 and 1", value, remedy))


def count(value: object, name: str, owner: str, least: int = 1, remedy: str = "") -> None:
    """Raise if a value is not a whole number from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(message(name, owner, f"a whole number >= {least}", value, remedy))


def switch(value: object, name: str, owner: str) -> None:
    """Raise if a value is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(message(name, owner, "True or False", value))


def message(name: str, owner: str, expected: str, value: object, remedy: str = "") -> str:
    """Text of the error about one argument."""
    return f"{owner}({name}=...): expected {expected}, got {value!r}" + (f"; {remedy}" if remedy else "")
