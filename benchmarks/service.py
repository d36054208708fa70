"""``bll serve`` under load, beside a bare route of FastAPI and LitServe with the same graph, and with and without batches.

locust is the load generator; it has a core of its own where there are two, and each server has one. Every user is one connection
that asks for one row after the other.
"""

import importlib.util
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = (8, 64)
CLASSES, WIDTH = 10, 512
RIVALS = ("bare FastAPI route", "LitServe")
OURS, ONE_BY_ONE = "bll_pyro", "bll_pyro, a request at a time"
SERVERS = (OURS, ONE_BY_ONE, *RIVALS)
START_SECONDS = 120
NOTHING = {"response_times": {}, "num_requests": 0, "num_failures": 0}


def write_graph(path: Path, wide: int | None) -> None:
    """A fit of ten classes as a graph: of 512 features, or behind a network of three layers that are so wide."""
    import bll_pyro as bll

    random = torch.Generator().manual_seed(0)
    x = torch.randn(1000, WIDTH, generator=random)
    y = (x[:, :CLASSES] + 0.5 * torch.randn(1000, CLASSES, generator=random)).argmax(1)
    network = None
    if wide is not None:
        sizes = [WIDTH, wide, wide, wide]
        parts = [
            part for a, b in itertools.pairwise(sizes) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())
        ]
        network = torch.nn.Sequential(*parts)
    layer = bll.LastLayer(bll.likelihoods.Categorical(CLASSES))
    inference = bll.Laplace(curvature=bll.curvatures.Diagonal())
    fit = bll.fit(layer, (x[:800], y[:800]), network, inference)
    fit = fit.with_detector(bll.ood.Detector(bll.ood.Epistemic()).calibrate(fit, x[800:]))
    fit.export(path, inputs=None if network is None else x[:2])


def command(server: str, graph: Path, port: int) -> list[str]:
    """What starts a server."""
    if server in RIVALS:
        name = "bare" if server == RIVALS[0] else "litserve"
        return [sys.executable, "-m", f"benchmarks.service_{name}", str(graph), str(port)]
    batch = ["--batch-rows", "1"] if server == ONE_BY_ONE else []
    return [
        sys.executable,
        "-m",
        "bll_pyro",
        "serve",
        f"m={graph}",
        "--port",
        str(port),
        "--log-level",
        "warning",
        *batch,
    ]


@contextmanager
def running(server: str, graph: Path, cores: set[int]) -> Iterator[tuple[int, int]]:
    """A server that answers: its port and the id of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(server, graph, port), cwd=ROOT, env=environment, stdout=log, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores), start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(process, port, log)
            yield port, process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the workers that a server left behind
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    body = ('{"rows": [[' + ", ".join(["0.25"] * WIDTH) + "]]}").encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"}
    )
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end:
                log.seek(0)
                raise RuntimeError(f"a server did not start: {log.read()[-2000:].decode()}") from error
            time.sleep(0.1)


def resident_bytes(pid: int) -> int:
    """Of a process and those that it started."""
    found = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "status").read_text()
                group = os.getpgid(int(folder.name))
            except OSError:
                continue
            line = [line for line in status.splitlines() if line.startswith("VmRSS:")]
            found += 1024 * int(line[0].split()[1]) if line and group == os.getpgid(pid) else 0
    return found


@dataclass(frozen=True)
class Seen:
    """What locust saw: requests a second, milliseconds, failures; and bytes after a fifth of the time and at the end."""

    rate: float
    median: float
    p99: float
    failures: int
    first_bytes: int
    last_bytes: int


def load(port: int, pid: int, connections: int, seconds: int, cores: set[int]) -> Seen:
    """Ask for some seconds."""
    generator = subprocess.Popen(
        [
            sys.executable, "-m", "locust", "-f", "benchmarks/service_load.py", "--headless", "-u", str(connections),
            "-r", str(connections), "-t", f"{seconds}s", "--host", f"http://127.0.0.1:{port}", "--json", "--loglevel", "ERROR",
        ],
        cwd=ROOT, env={**os.environ, "BLL_BENCH_WIDTH": str(WIDTH)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores), text=True,
    )  # fmt: skip
    time.sleep(seconds / 5 + 2)
    first = resident_bytes(pid)
    time.sleep(max(0.0, 0.7 * seconds - 1))
    last = resident_bytes(pid)
    said, _ = generator.communicate(timeout=seconds + 120)
    found, *_ = json.loads(said) or [NOTHING]
    times = sorted((float(key), number) for key, number in found["response_times"].items())
    number = found["num_requests"]

    def quantile(q: float) -> float:
        counted = 0
        for value, times_seen in times:
            counted += times_seen
            if counted >= q * number:
                return value
        return math.nan

    return Seen(number / seconds, quantile(0.5), quantile(0.99), found["num_failures"], first, last)


def run(options: Options) -> Report:
    """Every server with every number of connections, one after the other."""
    columns = {
        "model": "model", "method": "server", "connections": "connections", "rate": "requests a second", "median": "p50, ms",
        "p99": "p99, ms", "failures": "failures", "growth": "memory, end over beginning",
    }  # fmt: skip
    table = Table("One row a request, one core", columns)
    report = Report("service", "Service", [table])
    missing = [name for name in ("locust", "litserve") if importlib.util.find_spec(name) is None]
    if missing:
        report.notes.append(
            f"skipped or in part: {', '.join(missing)} not installed (benchmarks/requirements.txt)."
        )
    if "locust" in missing:
        return report
    available = sorted(os.sched_getaffinity(0))
    ours, other = {available[0]}, {available[-1]}
    seconds = 2 if options.small else 60
    found: dict[tuple[str, str, int], Seen] = {}
    models = {"head of 512 features": None, "three layers of 2,048 and a head": 2048}
    servers, numbers = SERVERS, CONNECTIONS
    if options.small:
        models, servers, numbers = dict([*models.items()][:1]), (OURS, RIVALS[0]), CONNECTIONS[:1]
    with tempfile.TemporaryDirectory() as folder:
        for model, wide in models.items():
            graph = Path(folder) / f"{wide}.onnx"
            write_graph(graph, wide)
            for server in servers:
                if (server == RIVALS[1] and "litserve" in missing) or not options.keeps(server):
                    continue
                with running(server, graph, ours) as (port, pid):
                    for connections in numbers:
                        seen = load(port, pid, connections, seconds, other)
                        found[model, server, connections] = seen
                        growth = seen.last_bytes / max(seen.first_bytes, 1)
                        row = {"model": model, "method": server, "connections": connections, "growth": growth}
                        table.rows.append(vars(seen) | row)
    report.targets += targets(found, list(models))
    report.notes.append(
        f"{seconds} s for each line, load by locust; server on core {ours}, load on core {other}."
    )
    return report


def targets(found: dict[tuple[str, str, int], Seen], models: list[str]) -> list[Target]:
    """No failure, flat memory, at least as many requests as the better rival, and what batches bring."""
    ours = [seen for (_, server, _), seen in found.items() if server in (OURS, ONE_BY_ONE)]
    made = [Target("failures of bll serve", float(sum(seen.failures for seen in ours)), 0.0)] if ours else []
    if ours:
        growth = max(seen.last_bytes / max(seen.first_bytes, 1) for seen in ours)
        made.append(Target("memory of bll serve, end over beginning", growth, 1.02))
    for model in models:
        for connections in CONNECTIONS:
            own = found.get((model, OURS, connections))
            rivals = [
                found[model, name, connections].rate for name in RIVALS if (model, name, connections) in found
            ]
            if own is not None and rivals:
                what = f"requests a second over the better rival, {model}, {connections} connections"
                made.append(Target(what, own.rate / max(rivals), 1.0, ">="))
    batched, single = (found.get((models[-1], server, CONNECTIONS[-1])) for server in (OURS, ONE_BY_ONE))
    if batched is not None and single is not None:
        what = f"batches over none, {models[-1]}, {CONNECTIONS[-1]} connections"
        made.append(Target(what, batched.rate / single.rate, 3.0, ">="))
    return made
