"""Processes of a small run: forked from a server that has imported the libraries and done nothing else.

A new interpreter with torch takes five seconds to start, of which a run of all benchmarks needs some twenty. Where figures count,
each is a new interpreter (``fresh_process``, ``launching``); in a small run they mean nothing.
"""

import io
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

KIND = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CLEAN = multiprocessing.get_context(KIND)
if KIND == "forkserver":
    CLEAN.set_forkserver_preload(["torch", "pyro", "bll_pyro.fitting"])  # type: ignore[attr-defined]


def printed(
    function: str, calls: Sequence[tuple[Any, ...]], variables: Sequence[dict[str, str]]
) -> list[str]:
    """What calls of ``module:function`` print, each in a process of its own, all at once, with its environment variables."""
    with ProcessPoolExecutor(len(calls), mp_context=CLEAN, max_tasks_per_child=1) as pool:
        done = [
            pool.submit(_printed, function, call, own) for call, own in zip(calls, variables, strict=True)
        ]
        return [one.result() for one in done]


def _printed(function: str, arguments: tuple[Any, ...], variables: dict[str, str]) -> str:
    os.environ.update(variables)
    module, _, name = function.partition(":")
    with redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(import_module(module), name)(*arguments)
    return said.getvalue()
