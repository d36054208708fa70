"""Description of the machine and the versions of a benchmark, without host name and paths."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("bll-pyro", "torch", "pyro-ppl", "numpy", "laplace-torch", "vbll")


def describe(num_threads: int) -> dict[str, Any]:
    """Processor, memory, threads, versions, and the load average before the run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": _memory_gib(),
        "threads": num_threads,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_line(environment: dict[str, Any]) -> str:
    """The description as one line for the tables."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        f"{environment['date']}; {environment['processor']}, {environment['cores']} cores "
        f"({environment['instructions']}), {environment['memory_gib']} GiB, accelerator: "
        f"{environment['accelerator']}; {environment['threads']} threads; Python {environment['python']}, {versions}; "
        f"load average before the run {environment['load_before']}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
