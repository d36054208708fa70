"""Ray Serve on a Ray of two CPUs on loopback: the same answers, killed replicas, reload, SIGTERM; all under load."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_cases import JSON, NPY, Client, fit, npy, rows

from bll_pyro.serve import ServiceSettings, application, open_model

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-tests"
LOCKED = {"authorization": f"Bearer {KEY}"}
CLIENTS = 4
NUM_ROWS = 200  # of each request under load
PROGRAM = """
import sys
from bll_pyro.ray_environment import prepare
prepare()
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, logging_level="WARNING")
print("address", ray.nodes()[0]["NodeManagerAddress"], flush=True)
from bll_pyro.cli import main
code = main(["serve", sys.argv[1], "--ray", "--port", sys.argv[2], "--grace", "20"])
print("left running", ray.is_initialized() and ray.cluster_resources()["CPU"] == 2, flush=True)
ray.shutdown()
sys.exit(code)
"""
CONFIGURATION = """
models: {{signs: {graph}}}
max_bytes: 100000
batch_rows: 1 # a request of many rows takes a while, so that a replica that is killed has some
replicas:
  num_replicas: 2
  ray_actor_options: {{num_cpus: 1}}
"""
PREFIX = re.compile(r"ServeReplica:bll:(\w+) pid=(\d+)\)\S* (\{.*\})$")


@dataclass
class Running:
    """The service as a process, with its log."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def lines(self, event: str, deployment: str) -> list[dict[str, Any]]:
        """Lines of the log of the replicas of a deployment, with their process."""
        found = [
            match.groups() for line in self.log.read_text().splitlines() if (match := PREFIX.search(line))
        ]
        read = [{**json.loads(line), "pid": int(pid)} for name, pid, line in found if name == deployment]
        return [line for line in read if line["event"] == event]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        try:
            connection.request(method, path, body, {**LOCKED, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def total(self, sample: str) -> float:
        text = self.ask("GET", "/metrics")[1].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample))


def until(condition: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "signs.onnx"
    fit().export(path)
    return path


@pytest.fixture(scope="module")
def running(graph: Path) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, log = graph.parent, graph.parent / "log"
    (folder / "program.py").write_text(PROGRAM)
    (folder / "service.yaml").write_text(CONFIGURATION.format(graph=graph))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(folder / "program.py"), str(folder / "service.yaml"), str(port)],
            stdout=out, stderr=out, text=True, env={**kept, "PYTHONPATH": paths, "BLL_API_KEY": KEY},
        )  # fmt: skip
    made = Running(process, port, log)
    try:
        end = time.monotonic() + 400  # on a busy machine
        while '"listening"' not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield made
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()  # the processes of its Ray end with it


@dataclass
class Load:
    """Clients that ask again and again, each about rows in an order of its own; one with ``repeats`` asks again what failed."""

    running: Running
    truth: np.ndarray
    repeats: bool = False
    answered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mark: str = field(
        default_factory=lambda: uuid.uuid4().hex
    )  # of its requests, among those of others in one log
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for number in range(CLIENTS):
            self.threads.append(threading.Thread(target=self._client, args=(number,)))
            self.threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _client(self, client: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            name, row = f"{client}-{count}-{self.mark}", (client + count) % len(self.truth)
            for attempt in range(200):
                if (said := self._once(f"{name}-{attempt}", row)) is None:
                    break
                self.failed.append(said)
                if not self.repeats:
                    break
                time.sleep(0.1)

    def _once(self, name: str, row: int) -> str | None:
        """Ask about the rows, from one on; what went wrong, or None."""
        body = json.dumps({"rows": np.roll(rows(NUM_ROWS), row, axis=0).tolist()}).encode()
        try:
            status, said = self.running.ask("POST", "/predict", body, **JSON, **{"x-request-id": name})
        except (OSError, http.client.HTTPException) as error:
            return f"{name} {error!r}"
        if status != 200:
            return f"{name} {status} {said[:200]!r}"
        if not np.allclose(json.loads(said)["probs"], np.roll(self.truth, row, axis=0), atol=1e-6):
            return f"{name} another answer"
        self.answered.append(name)
        return None

    def some(self, number: int = 30) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answered) + number
        until(lambda: len(self.answered) >= wanted)


@pytest.fixture(scope="module")
def alone(graph: Path) -> Iterator[Client]:
    """The same application in this process."""
    app = application(
        {"signs": lambda: open_model(graph)},
        ServiceSettings(environment={}, request_bytes=100_000, batch_rows=1),
    )
    with Client(app) as client:
        yield client


@pytest.fixture(scope="module")
def truth(alone: Client) -> np.ndarray:
    return np.array(alone.post("/predict", {"rows": rows(NUM_ROWS).tolist()}).json()["probs"])


def replicas(running: Running) -> set[str]:
    """Those that have answered."""
    return {line["replica"] for line in running.lines("request", "Front") if "replica" in line}


def test_two_replicas_answer_as_one_process_does(running: Running, alone: Client) -> None:
    for number in range(20):
        given = rows(1 + number, seed=number)
        for body, kind in ((npy(given), NPY), (json.dumps({"rows": given.tolist()}).encode(), JSON)):
            status, said = running.ask("POST", "/models/signs/predict", body, **kind)
            assert status == 200
            expected = alone.post("/models/signs/predict", body, kind).json()
            found = json.loads(said)
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values, err_msg=name)
    for path in ("/openapi.json", "/models", "/readyz", "/"):
        assert running.ask("GET", path) == (200, alone.get(path).body)
    until(lambda: len(replicas(running)) == 2)
    assert "address 127.0.0.1\n" in running.log.read_text()


def test_what_is_wrong_is_refused_alike(running: Running, alone: Client) -> None:
    for method, path, body, headers in (
        ("POST", "/predict", b"{", JSON),
        ("POST", "/predict", b'{"rows": [[1.0]]}', JSON),
        ("POST", "/predict", b"0" * 100_001, NPY),
        ("POST", "/predict", b"", {"content-type": "text/plain"}),
        ("GET", "/models/none", b"", {}),
        ("GET", "/nowhere", b"", {}),
        ("GET", "/predict", b"", {}),
    ):
        status, said = running.ask(method, path, body, **headers)
        expected = alone.post(path, body, headers) if method == "POST" else alone.get(path, headers)
        problem = json.loads(said)
        assert problem.pop("request_id") and status == expected.status >= 400
        assert problem == {name: value for name, value in expected.json().items() if name != "request_id"}
    assert running.ask("GET", "/model", authorization="")[0] == 401
    assert running.ask("GET", "/metrics", authorization="")[0] == 401


def test_replicas_that_are_killed_lose_no_request(running: Running, truth: np.ndarray) -> None:
    sample = 'bll_requests_total{path="/predict",status="200"}'
    before = running.total(sample)
    with Load(running, truth) as load:
        load.some()
        for number in range(5):  # one that has no request at work is not missed
            os.kill(running.lines("model", "Models")[number]["pid"], signal.SIGKILL)
            until(lambda number=number: len(replicas(running)) == 3 + number)  # the new one answers, too
            load.some()
            if running.lines("replica lost", "Front"):
                break
    assert not load.failed
    assert running.lines("replica lost", "Front")  # there were requests at work in it
    assert running.total(sample) == before + len(load.answered)  # and each of them counts once


def test_models_are_loaded_anew_under_load(running: Running, truth: np.ndarray) -> None:
    with Load(running, truth) as load:
        load.some()
        running.process.send_signal(signal.SIGHUP)
        until(lambda: len(running.lines("reload", "Models")) == 2)
        load.some()
    assert not load.failed
    assert len({line["pid"] for line in running.lines("reload", "Models")}) == 2


def test_a_front_that_is_killed_is_replaced_and_who_repeats_gets_all(
    running: Running, truth: np.ndarray
) -> None:
    def fronts() -> set[int]:
        return {line["pid"] for line in running.lines("request", "Front")}

    with Load(running, truth, repeats=True) as load:
        load.some()
        until(fronts)  # replicas' lines reach the log a moment after the answers
        before = fronts()
        (front,) = before
        os.kill(front, signal.SIGKILL)
        until(lambda: fronts() - before)
        load.some()
    assert len(load.failed) >= 1  # this is what the documentation says: a client is to repeat it
    asked = {name.rpartition("-")[0] for name in (said.split(" ")[0] for said in load.failed)}
    assert asked <= {name.rpartition("-")[0] for name in load.answered}


def test_sigterm_loses_nothing_that_was_taken(running: Running, truth: np.ndarray) -> None:
    with Load(running, truth) as load:
        load.some()
        running.process.terminate()
        assert running.process.wait(60) == 0, running.log.read_text()[-2000:]
    assert "left running True" in running.log.read_text()
    mine = [line for line in running.lines("request", "Front") if f"-{load.mark}-" in line["request_id"]]
    assert {line["request_id"] for line in mine if line["status"] == 200} == set(load.answered)
    assert {line["status"] for line in mine} <= {200, 503}
    # the others were refused by the fronts (503) or the proxy (404), or found nobody there
    refused = re.compile(r"\S+ (503|404|(Connection\w+|BrokenPipe)Error|RemoteDisconnected)\b")
    assert load.failed and not [said for said in load.failed if not refused.match(said)]
