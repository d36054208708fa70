"""A real service with two workers on loopback: reload, a killed worker, and SIGTERM, all under load."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from service_cases import JSON, NUM_CLASSES, WIDTH, light

from bll_pyro.serve import Binding, ServiceSettings, serve

TESTS = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from functools import partial
from service_cases import light
from bll_pyro.serve import Binding, ServiceSettings, serve
if __name__ == "__main__":
    import logging.config
    from bll_pyro.serve.logs import configuration
    logging.config.dictConfig(configuration("info"))
    serve({"m": partial(light, 0.01)}, ServiceSettings(), Binding(port=int(sys.argv[1]), workers=2, grace=20))
"""
BODY = json.dumps({"rows": [[0.5] * WIDTH]})
CLIENTS = 6


@dataclass
class Running:
    """A service as a process, with its log."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def ask(self, method: str, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def total(self, sample: str) -> float:
        (line,) = [line for line in self.ask("GET", "/metrics").splitlines() if line.startswith(sample + " ")]
        return float(line.rpartition(" ")[2])


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "program.py").write_text(PROGRAM)
    log = tmp_path / "log"
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "BLL_API_KEY"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(port)],
            stdout=out, stderr=out, text=True, env={**environment, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    made = Running(process, port, log)
    try:
        until(lambda: len(made.events("model")) == 2 or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield made
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


@dataclass
class Load:
    """Clients that ask again and again, each on a connection of its own."""

    port: int
    keep_alive: bool = True
    answered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
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
        connection, count = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), 0
        while not self.over.is_set():
            count += 1
            name = f"{client}-{count}"
            try:
                connection.request("POST", "/predict", BODY, {**JSON, "X-Request-ID": name})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(f"{name} {error!r}")
                connection.close()
                time.sleep(0.02)
                continue
            if answer.status != 200 or len(json.loads(body)["probs"][0]) != NUM_CLASSES:
                self.wrong.append(f"{name} {answer.status}")
            self.answered.append(name)
            if not self.keep_alive:
                connection.close()
        connection.close()

    def some(self, number: int = 40) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answered) + number
        until(lambda: len(self.answered) >= wanted)


@pytest.mark.slow
def test_nothing_is_lost_that_need_not_be(running: Running) -> None:
    # a reload: no request fails, on connections that stay open throughout
    with Load(running.port) as load:
        load.some()
        os.kill(running.process.pid, signal.SIGHUP)
        until(lambda: len(running.events("reload")) == 2)
        load.some()
    assert not load.broken and not load.wrong
    assert len({event["worker"] for event in running.events("reload")}) == 2
    until(lambda: running.total('bll_reloads_total{model="m",outcome="done"}') == 2)
    # the numbers are those of both workers
    workers = {event["worker"] for event in running.events("request") if event["path"] == "/predict"}
    assert running.total('bll_requests_total{path="/predict",status="200"}') == len(load.answered)
    before = len(load.answered)
    # a worker is killed: only its own connections break, the others go on, and it is replaced
    victim = next(iter(workers))
    assert isinstance(victim, int)
    with Load(running.port) as load:
        load.some()
        os.kill(victim, signal.SIGKILL)
        load.some()
        until(lambda: len(running.events("model")) == 5)  # two at first, two at the reload, and the new one
        load.some()
    assert not load.wrong and len(load.broken) <= CLIENTS
    assert running.events("worker died")[0]["pid"] == victim
    assert running.events("model")[-1]["worker"] not in workers | {victim}
    total = running.total('bll_requests_total{path="/predict",status="200"}')
    assert before + len(load.answered) <= total <= before + len(load.answered) + len(load.broken)
    # SIGTERM: whatever a worker began is answered, and the client has it
    with Load(running.port, keep_alive=False) as load:
        load.some()
        running.process.terminate()
        running.process.wait(60)
    assert running.process.returncode == 0, running.log.read_text()[-2000:]
    assert not load.wrong and load.broken  # no one is there at the end
    events = running.events("request")
    answered = set(load.answered)
    logged = {event["request_id"] for event in events[-len(answered) :]}
    assert {event["status"] for event in events} == {200} and logged == answered
    assert not list(Path(running.log.parent).glob("bll-serve-*"))


@pytest.mark.slow
def test_a_service_whose_workers_cannot_start_ends(tmp_path: Path) -> None:
    """Here for a certificate that is none, which only a worker finds out; it is not started again and again."""
    (tmp_path / "a.pem").write_text("no certificate")
    program = PROGRAM.replace("grace=20", "certificate=Path(sys.argv[2]), private_key=Path(sys.argv[2])")
    (tmp_path / "program.py").write_text("from pathlib import Path\n" + program)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), "0", str(tmp_path / "a.pem")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "RuntimeError: expected workers that start" in done.stderr


def test_a_wrong_key_is_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="16 letters"):
        serve({"m": light}, ServiceSettings(environment={"BLL_API_KEY": "short"}), Binding())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"port": 70_000}, "port from 0 to 65535"),
        ({"grace": 0.0}, "grace"),
        ({"certificate": Path("a.pem")}, "TLS needs both"),
        ({"log_level": "loud"}, "debug, info"),
    ],
)
def test_wrong_bindings(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Binding(**given)  # type: ignore[arg-type]
