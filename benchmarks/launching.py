"""Several processes that are ranks of one group on this machine, each a fresh interpreter: ``python -m MODULE ARGUMENTS``."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

from benchmarks.forked import printed

MARK = "rank says: "


def say(value: Any) -> None:
    """Give a value to the process that launched this rank."""
    print(MARK + json.dumps(value), flush=True)


def launch(module: str, arguments: dict[str, Any], size: int, is_small: bool = False) -> list[Any]:
    """What each of ``size`` ranks says at the end, in their order; RuntimeError with the output of one that fails.

    In a small run the processes are forked from one that has imported the libraries, and call ``rank_main`` of the module.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    if is_small:
        ranks = [{**common, "RANK": str(rank)} for rank in range(size)]
        outputs = printed(f"{module}:rank_main", [(arguments,)] * size, ranks)
        return _said(outputs, size, module)
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if codes := [process.returncode for process in processes if process.returncode]:
        raise RuntimeError(f"ranks of {module} failed: {codes}\n{outputs}")
    return _said(outputs, size, module)


def _said(outputs: list[str], size: int, module: str) -> list[Any]:
    found = [line for output in outputs for line in output.splitlines() if line.startswith(MARK)]
    if len(found) != size:
        raise RuntimeError(f"ranks of {module}: expected {size} lines, got {len(found)}\n{outputs}")
    return [json.loads(line.removeprefix(MARK)) for line in found]
