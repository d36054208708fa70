"""What loggers have in common: the library that one needs, and the declaration of a run in plain words."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bll_pyro.observation.records import Run

LONGEST = 500  # characters of a value


def needed(module: str, logger: str, package: str) -> Any:
    """A module that a logger needs; ModuleNotFoundError with the command that installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"bll.loggers.{logger}: expected the package {package}, got none: pip install {package}",
            name=error.name,
        ) from error


def declaration(run: Run) -> dict[str, str]:
    """What a run was asked to do, by name, as text."""
    said = {name: str(value) for name, value in run.details.items()}
    return {name: text[:LONGEST] for name, text in said.items()}
