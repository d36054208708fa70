"""How a public name goes: it works on, warns with ``FutureWarning``, and is removed by the version that the warning names.

The policy stands in ``docs/releases.md``. ``FutureWarning`` is the category that Python shows to those who run a program, where
``DeprecationWarning`` is shown to nobody but the authors of tests.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typing_extensions

Named = TypeVar("Named", bound=Callable[..., Any])


def deprecated(*, since: str, removed_in: str, use: str) -> Callable[[Named], Named]:
    """Decorator of a public function, method or class that goes.

    Parameters
    ----------
    since
        Version that deprecates it, ``"0.2"``.
    removed_in
        Version without it: at least the next minor version, ``"0.3"``.
    use
        What to write instead, ``"bll.fit"``.

    Raises
    ------
    ValueError
        A version that is no ``"MAJOR.MINOR"``, or a removal that is not later than ``since``.
    """
    check_versions(since, removed_in)

    def decorate(named: Named) -> Named:
        message = _message(f"{named.__module__}.{named.__qualname__}", since, removed_in, use)
        return typing_extensions.deprecated(message, category=FutureWarning)(named)

    return decorate


def renamed_parameter(old: str, new: str, *, since: str, removed_in: str) -> Callable[[Named], Named]:
    """Decorator of a public function whose keyword ``old`` is now called ``new``: the old one is taken and warns.

    ``since`` and ``removed_in`` are those of ``deprecated``. On a class it decorates ``__init__``. Whoever gives both names gets
    the ``TypeError`` of a call that gives one argument twice.
    """
    check_versions(since, removed_in)

    def decorate(function: Named) -> Named:
        name = f"{function.__module__}.{function.__qualname__}"
        message = _message(f"{name}({old}=...)", since, removed_in, f"{new}=")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{name}: got {new}= and its old name {old}=; give {new}= alone")
                warnings.warn(message, FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def check_versions(since: str, removed_in: str) -> None:
    """Raise unless there is at least one minor version in which the name works and warns."""
    pairs = []
    for name, version in (("since", since), ("removed_in", removed_in)):
        found = re.fullmatch(r"(\d+)\.(\d+)", version)
        if not found:
            raise ValueError(f'{name}: expected "MAJOR.MINOR", for example "0.3", got {version!r}')
        pairs.append((int(found[1]), int(found[2])))
    if pairs[1] <= pairs[0]:
        raise ValueError(
            f"removed_in: expected a later version than since={since}, got {removed_in}; a name that is deprecated works and warns "
            "for one minor version at least"
        )


def _message(what: str, since: str, removed_in: str, use: str) -> str:
    return f"{what} is deprecated since bll_pyro {since} and goes with {removed_in}; use {use}"
