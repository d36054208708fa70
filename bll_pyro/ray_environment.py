"""The environment of a Ray of our own, and the connection to one. Ray reads the environment when it is imported.

So this file imports Ray inside its functions only.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ADDRESS_VARIABLE = "RAY_ADDRESS"


def prepare() -> bool:
    """Set what a Ray that is started here must know; whether one will be: False if ``RAY_ADDRESS`` names one.

    No telemetry; the ports between Ray's processes on loopback alone; and a secret between them, so that nobody else on the machine
    can run code in them. Without the secret here Ray would write one into the home folder.
    """
    if os.environ.get(ADDRESS_VARIABLE):
        return False
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of a log that look alike are no repetitions
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for other nodes, on Linux too
    # Ray waits three times 5 s for its proxy, which on a busy machine is still importing then, and gives up
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return True


def connect() -> bool:
    """Connect this process to a Ray; whether it is one of ours, to be ended.

    A Ray that it is connected to already is taken first, then the one that ``RAY_ADDRESS`` names; without either a Ray of this
    machine is started, without its dashboard. It has two CPUs at least, by name: with one, tasks that read rows would wait for ever
    for actors that hold a part of it.
    """
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        return False
    is_ours = not os.environ.get(ADDRESS_VARIABLE)
    if loaded is None:  # later it would be read in part, by the processes that are started
        prepare()
    import ray

    options: dict[str, Any] = {}
    if is_ours:
        options = {"address": "local", "include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, 2)}
    ray.init(logging_level="WARNING", **options)
    return is_ours


@contextmanager
def connected(work: str) -> Iterator[Any]:
    """``ray.data`` on the Ray of :func:`connect`, which ends with the block if it is ours; ``work`` is who needs it.

    ModuleNotFoundError without Ray.
    """
    try:
        is_ours = connect()
        import ray.data
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{work}: expected Ray Data, which is not installed ({error}); pip install "bll-pyro[ray]"'
        ) from error
    try:
        yield ray.data
    finally:
        if is_ours:
            ray.shutdown()
