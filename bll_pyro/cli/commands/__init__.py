"""The commands: ``commands/NAME.py`` holds the function ``NAME_command``, whose arguments are the options of ``bll NAME``.

Its docstring is the help, with a section Examples. These files are all loaded for ``bll --help``, so they import what is heavy
(torch, and rooms of the package that need it) inside their functions. An argument ``overrides`` gets the dotted options,
``{"layer.prior": "Horseshoe"}``, and ``console`` the :class:`bll_pyro.cli.console.Console` that results and messages go to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

COMMANDS = (
    "demo",
    "fit",
    "bayesianize",
    "predict",
    "evaluate",
    "ood",
    "diagnose",
    "compare",
    "report",
    "check",
    "export",
    "serve",
    "schema",
)


@dataclass(frozen=True)
class Command:
    """A command: the function that runs it."""

    name: str
    function: Callable[..., None]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The arguments of the function by name."""
        return dict(inspect.signature(self.function).parameters)

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of this name."""
        return name in self.options

    @property
    def help(self) -> str:
        """The docstring."""
        return inspect.getdoc(self.function) or ""


def command(name: str) -> Command:
    """The command of this name."""
    module: Any = import_module(f"{__name__}.{name}")
    return Command(name, getattr(module, f"{name}_command"))
