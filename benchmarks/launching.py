"""Several processes that are ranks of one group on this machine, each a fresh interpreter: ``python -m MODULE ARGUMENTS``."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

MARK = "rank says: "


def say(value: Any) -> None:
    """Give a value to the process that launched this rank."""
    print(MARK + json.dumps(value), flush=True)


def launch(module: str, arguments: dict[str, Any], size: int) -> list[Any]:
    """What each of ``size`` ranks says at the end, in their order; RuntimeError with the output of one that fails."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    found = [line for output in outputs for line in output.splitlines() if line.startswith(MARK)]
    if any(process.returncode for process in processes) or len(found) != size:
        raise RuntimeError(
            f"ranks of {module} failed: {[process.returncode for process in processes]}\n{outputs}"
        )
    return [json.loads(line.removeprefix(MARK)) for line in found]
