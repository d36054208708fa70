"""Measurement of work in a fresh process, so that earlier work affects neither peak memory nor import time.

``python -m benchmarks.fresh_process MODULE:FUNCTION JSON`` calls the function with the keyword arguments. The function
prepares its inputs and returns the work as a callable, whose result is returned as JSON; peak memory is read before and
after the work.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1024**3
_MARK = "benchmark outcome: "


@dataclass(frozen=True)
class Outcome:
    """Memory and time of one process, or the reason of its ``failure``.

    ``peak_bytes`` is the peak resident memory of the whole process, ``before_bytes`` the peak after imports and the
    preparation of inputs, ``seconds`` the wall time of the work.
    """

    peak_bytes: int | None = None
    before_bytes: int | None = None
    seconds: float | None = None
    value: Any = None
    failure: str | None = None


def peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux ``ru_maxrss`` is kept across ``exec``: a child of a large process starts with the peak of its parent.
    ``VmHWM`` belongs to the new address space, so it is used where it exists.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return _kib(status.read_text(), "VmHWM") * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kib(status: str, field: str) -> int:
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":")), 0)


def measure(
    target: str,
    arguments: dict[str, Any],
    *,
    num_threads: int = 1,
    memory_limit: float | None = None,
    time_limit: float = 900.0,
    is_small: bool = False,
) -> Outcome:
    """Run ``module:function`` in a fresh process.

    A process that exceeds ``memory_limit`` bytes or ``time_limit`` seconds is killed, and its outcome says so. In a small run
    there are no limits, and the process is forked from one that has imported the libraries.
    """
    if is_small:
        from benchmarks.forked import printed  # not in the child, whose memory is measured

        try:
            (said,) = printed("benchmarks.fresh_process:tell", [(target, arguments)], [{}])
        except Exception as error:
            return Outcome(failure=f"{type(error).__name__}: {error}")
        return _outcome(said)
    environment = dict(os.environ, OMP_NUM_THREADS=str(num_threads), MKL_NUM_THREADS=str(num_threads))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.fresh_process", target, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[1],
    )
    failure = _watch(process, memory_limit, time.monotonic() + time_limit, time_limit)
    said, errors = process.communicate()
    if failure is not None:
        return Outcome(failure=failure)
    if process.returncode != 0:
        lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        return Outcome(failure=lines[-1])
    return _outcome(said)


def _outcome(said: str) -> Outcome:
    line = next(line for line in reversed(said.splitlines()) if line.startswith(_MARK))
    return Outcome(**json.loads(line.removeprefix(_MARK)))


def _watch(
    process: subprocess.Popen[str], memory_limit: float | None, deadline: float, allowed: float
) -> str | None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            return f"passes {allowed:.0f} s"
        if memory_limit is not None and status.exists():
            try:
                used = _kib(status.read_text(), "VmRSS") * 1024
            except (FileNotFoundError, ProcessLookupError):  # the process has ended since the check
                continue
            if used > memory_limit:
                process.kill()
                return f"passes {memory_limit / GIB:.3g} GiB"
        time.sleep(0.02)
    return None


def tell(target: str, arguments: dict[str, Any]) -> None:
    """Do the work in this process, and print its outcome."""
    module, function = target.split(":")
    work = getattr(importlib.import_module(module), function)(**arguments)
    before, began = peak_bytes(), time.perf_counter()
    value = work()
    outcome = {"peak_bytes": peak_bytes(), "before_bytes": before, "seconds": time.perf_counter() - began}
    print(_MARK + json.dumps(outcome | {"value": value}))


if __name__ == "__main__":
    tell(sys.argv[1], json.loads(sys.argv[2]))
