"""Dotted options: ``--layer.prior Horseshoe --inference.guide.rank 8`` change one value of an experiment each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bll_pyro.cli.usage import UsageError

if TYPE_CHECKING:
    from bll_pyro.cli.yaml_file import Document

# the keys of an experiment; a test compares them with the fields of the class, which needs torch
KEYS = ("data", "splits", "backbone", "layer", "inference", "calibration", "detector", "seed")


def set_apart(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without dotted options, and the dotted options ``{path: value}``; after ``--`` there are none.

    Raises
    ------
    UsageError
        If an option has no value.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
            break
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name.partition(".")[0] not in KEYS:
            rest.append(argument)
            continue
        if not equals:
            value = next(waiting, "--")
            if value.startswith("--"):
                raise UsageError(
                    f"--{name}: expected a value, got none; write --{name} VALUE or --{name}=VALUE"
                )
        found[name] = value
    return rest, found


def overridden(document: Document, overrides: Mapping[str, str]) -> Document:
    """The document with other values; what lies under a class that is changed goes with it.

    A class without arguments, ``guide: LowRank``, may get some: ``--inference.guide.rank 8``.
    """
    from bll_pyro.cli.yaml_file import scalar

    if not isinstance(document.plain, dict) or not overrides:
        return document
    plain, places = copy.deepcopy(document.plain), dict(document.places)
    for name in sorted(overrides, key=lambda one: one.count(".")):
        option, path = f"--{name}", tuple(name.split("."))
        if not all(path):
            raise UsageError(f"{option}: expected names with dots between them, such as --layer.prior")
        inner: dict[str, Any] = plain
        for depth, key in enumerate(path[:-1], 1):
            value = inner.get(key)
            if isinstance(value, str):
                inner[key] = {"class": value}
            elif value is None:
                inner[key] = {}
                places[path[:depth]] = option
            elif not isinstance(value, dict):
                raise UsageError(f"{option}: expected a class at {'.'.join(path[:depth])}, got {value!r}")
            inner = inner[key]
        inner[path[-1]] = scalar(overrides[name], option)
        for below in [one for one in places if one[: len(path)] == path]:
            del places[below]
        places[path] = option
    return replace(document, plain=plain, places=places)
