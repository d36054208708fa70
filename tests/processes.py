"""Processes for tests: each begins clean, as one of its own would, and torch is imported once for all of them.

They are forked from a server that has imported the libraries, with those of the command line, and done nothing else, which takes
some hundredths of a second; a new interpreter with torch takes five, and a command that loads the rest of them two more.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

KIND = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CLEAN = multiprocessing.get_context(KIND)
if KIND == "forkserver":
    # one list for all tests: the server is one for the process, and keeps what it was started with
    ROOMS = ("fitting", "cli.running", "cli.predicting", "diagnostics", "elpd.leave_one_out", "reporting")
    ROOMS += ("inference.svi.joint", "inference.nuts", "checkpoint.folder")
    LIBRARIES = ("torch", "pyro", "arviz_stats", "joblib", "pandas", "sklearn.preprocessing", "xarray")
    LIBRARIES += ("torch._dynamo", "lightning_fabric", "filelock", "safetensors.torch")
    CLEAN.set_forkserver_preload([*LIBRARIES, *(f"bll_pyro.{room}" for room in ROOMS)])  # type: ignore[attr-defined]


def pool(number: int) -> ProcessPoolExecutor:
    """Clean processes for calls of functions that can be imported."""
    return ProcessPoolExecutor(number, mp_context=CLEAN)


def in_a_process[T](call: Callable[..., T], *arguments: Any) -> T:
    """What one call returns in a clean process; its error is raised here."""
    with pool(1) as one:
        return one.submit(call, *arguments).result()


def exit_code(call: Callable[..., object], *arguments: Any) -> int | None:
    """How a clean process ends that makes one call: 0, or minus the signal that killed it."""
    process = CLEAN.Process(target=call, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode
