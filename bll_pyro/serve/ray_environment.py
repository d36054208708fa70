"""``prepare``: the environment of a Ray of our own. Ray reads it when it is imported, so this file imports nothing of it."""

from __future__ import annotations

import os
import secrets

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
