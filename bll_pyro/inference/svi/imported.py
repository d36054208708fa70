"""A class or function by the place that it is imported from: what a declaration can hold, compare and write down."""

from __future__ import annotations

import functools
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bll_pyro.declaration import Declaration, to_plain


@dataclass(frozen=True, eq=False)
class Imported(Declaration):
    """A class or function by its import path, with keyword arguments, e.g. ``Imported("torch.optim.SGD", {"momentum": 0.95})``.

    Nothing is imported before the object is needed, so that a saved declaration can be read where its module is missing.

    Parameters
    ----------
    path
        Module and name, with dots between them.
    arguments
        Keyword arguments for the call: numbers, strings, and lists and dictionaries of these.

    Raises
    ------
    ValueError
        If this is no import path, or a module that is already imported has nothing to call there.
    TypeError
        If the arguments cannot be written down.
    """

    family: ClassVar[str] = "training"
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = self.path.split(".") if isinstance(self.path, str) else []
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ValueError(
                f"Imported(path=...): expected module and name such as 'torch.optim.RAdam', got {self.path!r}"
            )
        if not isinstance(self.arguments, dict) or not all(isinstance(name, str) for name in self.arguments):
            raise TypeError(
                f"Imported(arguments=...): expected keyword arguments by name, got {self.arguments!r}"
            )
        try:
            to_plain(self.arguments, {})
        except TypeError as error:
            raise TypeError(
                f"Imported({self.path!r}, arguments=...): expected arguments that can be written down, got {error}; write a "
                "function that makes the object, in a module, and pass that function"
            ) from error
        if parts[0] in sys.modules:
            self.found()

    def found(self) -> Callable[..., Any]:
        """What is there; its module is imported. ValueError if there is nothing, or nothing that can be called."""
        try:
            value = pkgutil.resolve_name(self.path)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"Imported({self.path!r}): expected something that can be imported, got: {error}; check the name, and that its "
                "module is on sys.path"
            ) from error
        if not callable(value):
            raise ValueError(
                f"Imported({self.path!r}): expected a class or function, got {type(value).__name__}; name one that can be called"
            )
        return value

    @classmethod
    def of(cls, value: Any, owner: str) -> Imported:
        """A declaration of a class, a function, or a ``functools.partial`` of one with keyword arguments, or an import path.

        ``owner`` names the argument in errors.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        arguments: dict[str, Any] = {}
        while isinstance(value, functools.partial):
            if value.args:
                raise ValueError(
                    f"{owner}: expected a partial with keyword arguments alone, got the arguments {value.args!r} without "
                    "names; give each of them its name"
                )
            value, arguments = value.func, {**value.keywords, **arguments}
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if not callable(value) or not module or not name:
            raise TypeError(
                f"{owner}: expected a name, a class, a function, or an import path, got {value!r}; see bll.Imported"
            )
        if "<" in name:  # <lambda>, <locals>
            raise ValueError(
                f"{owner}: expected what can be imported by its name, got {name} of {module}; define it at the top of a module, so "
                "that the declaration can be compared and saved"
            )
        return cls(f"{module}.{name}", arguments)
