"""The environments of the peers: a folder each beside .venv, at the exact versions of ``peers/NAME.txt``.

Two of them cannot share one (laplace-torch 0.3 and lightning-uq-box 0.4 ask for different versions of curvlinops). What .venv
has already (torch, numpy, ...) comes from there. A peer that cannot be installed or started is named with its reason.
"""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "suite"
REQUIREMENTS = Path(__file__).parent / "peers"
INSTALL_LIMIT = 600.0  # seconds


@dataclass(frozen=True)
class Job:
    """One fit."""

    method: str
    seed: int
    split: Path
    predictions: Path
    is_small: bool = False

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self), default=str) + "\n"

    @classmethod
    def of(cls, line: str) -> Self:
        """From a line."""
        given = json.loads(line)
        paths = {name: Path(given[name]) for name in ("split", "predictions")}
        return cls(**(given | paths))


def folder(peer: str) -> Path:
    """Where the packages of a peer are."""
    return CACHE / "peers" / peer


@cache
def failure_of_install(peer: str, *, may_install: bool = True) -> str | None:
    """Install a peer if it is not there at the versions of its file; None, or why it is not there."""
    wanted = REQUIREMENTS / f"{peer}.txt"
    mark, digest = folder(peer) / ".installed", hashlib.sha256(wanted.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return None
    if not may_install:
        return "not installed"
    command = [
        sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable,
        "--target", str(folder(peer)), "--no-deps", "--requirements", str(wanted),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"installation takes more than {INSTALL_LIMIT:g} s"
    if done.returncode:
        lines = done.stderr.replace(str(ROOT), ".").strip().splitlines()
        return "cannot be installed: " + (lines[-1].strip() if lines else f"exit status {done.returncode}")
    mark.write_text(digest)
    return None


@cache
def version_of(package: str, peer: str | None) -> str | None:
    """The version of a package in the environment of a peer, or in that of the project."""
    path = sys.path if peer is None else [str(folder(peer))]
    found: list[Distribution] = list(distributions(name=package, path=path))
    return found[0].version if found else None


class Worker:
    """A process in the environment of a peer, that fits one job after another."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        path = os.pathsep.join([str(folder(peer)), str(ROOT), os.environ.get("PYTHONPATH", "")])
        log = CACHE / "logs" / f"{peer}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suite.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, job: Job) -> dict[str, Any]:
        """The answer to a job; a failure if the process is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(job.line())
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        last = self.log.read_text().strip().splitlines()
        return {"failure": f"its process ended: {last[-1] if last else 'without a word'}"[:200]}

    def close(self) -> None:
        """End the process, and wait for it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if not self.process.stdin.closed:
            with suppress(BrokenPipeError):  # it ended by itself
                self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
