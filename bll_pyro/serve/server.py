"""``serve``: the application in workers of uvicorn, under a parent that keeps them alive.

The parent holds the socket and no model. A worker that dies is replaced; one that cannot start ends the service. On SIGHUP the
parent raises a counter that the workers watch, and each loads its models anew while it serves by the old ones: no connection is
closed, so no request is lost. On SIGTERM the workers take no further connection, answer what they took, and end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from bll_pyro.checks import count, positive
from bll_pyro.serve.app import application
from bll_pyro.serve.keys import Keys
from bll_pyro.serve.logs import configuration, tell
from bll_pyro.serve.monitoring import FOLDER_VARIABLE
from bll_pyro.serve.service import ModelLoader
from bll_pyro.serve.settings import ServiceSettings

LOOK_SECONDS = 0.25  # between looks at the counter and at the parent
LEVELS = ("debug", "info", "warning", "error")
SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Binding:
    """Where and how a service listens.

    Parameters
    ----------
    host, port
        Address; port 0 takes a free one.
    workers
        Number of processes.
    grace
        Seconds that requests have to end after SIGTERM.
    certificate, private_key
        Files in PEM for TLS; None serves plain HTTP.
    log_level
        ``"info"`` logs every request, ``"warning"`` only trouble.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    grace: float = 30.0
    certificate: Path | None = None
    private_key: Path | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        count(self.workers, "workers", "Binding")
        positive(self.grace, "grace", "Binding")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"Binding(port=...): expected a port from 0 to 65535, got {self.port}")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError(
                "Binding: expected certificate and private_key together, got one of them; TLS needs both"
            )
        if self.log_level not in LEVELS:
            raise ValueError(
                f"Binding(log_level=...): expected one of {', '.join(LEVELS)}, got {self.log_level!r}"
            )


@dataclass(frozen=True)
class _Worker:
    """Makes the application in a worker; goes there by pickle."""

    models: Mapping[str, ModelLoader]
    settings: ServiceSettings
    counter: Any  # how often to reload, shared with the parent
    started: Any  # how many workers have started so far, shared with it, too
    parent: int
    threads: int

    def __call__(self) -> FastAPI:
        # of an exported graph and of torch alike; read when the libraries load, which is later
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        app = application(self.models, self.settings)
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def watched(given: FastAPI) -> AsyncIterator[Any]:
            seen = self.counter.value  # before the models are loaded: a reload in between is done again
            async with inner(given) as state:
                with self.started.get_lock():
                    self.started.value += 1
                watch = asyncio.create_task(self._watch(given, seen))
                yield state
                watch.cancel()

        app.router.lifespan_context = watched
        return app

    async def _watch(self, app: FastAPI, seen: int) -> None:
        """Reload when the counter rises, and end when the parent has gone."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if os.getppid() != self.parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if (value := self.counter.value) != seen:
                seen = value
                await app.state.service.reload()


class _Parent(Multiprocess):
    """uvicorn's parent, but for what SIGHUP does and for the numbers of dead workers."""

    counter: Any
    started: Any
    failed = False

    def handle_hup(self) -> None:
        with self.counter.get_lock():
            self.counter.value += 1

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended. None is asked whether it lives: one that imports torch would not answer for long."""
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set() or process.process.is_alive():
                continue
            process.join()
            assert process.pid is not None
            mark_process_dead(process.pid)
            tell("worker died", logging.ERROR, pid=process.pid, exit_code=process.exitcode)
            never_started = (
                not self.started.value and (process.exitcode or 0) > 0
            )  # of a signal it is negative
            if never_started or process.exitcode == STARTUP_FAILURE:  # it would fail the same way again
                self.failed = True
                self.should_exit.set()
                return
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()


def serve(models: Mapping[str, ModelLoader], settings: ServiceSettings, binding: Binding) -> None:
    """Serve until SIGTERM or SIGINT.

    Parameters
    ----------
    models
        As for :func:`application`; the functions must be importable, since they go to the workers by pickle.
    settings, binding
        Limits, and where to listen.

    Raises
    ------
    RuntimeError
        If a worker cannot start; its message is in the log.
    ValueError
        If a key is too short, or the file of keys has none.
    OSError
        If the address is in use, or a file of TLS cannot be read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counter, started = SPAWN.Value("q", 0), SPAWN.Value("q", 0)
    Keys.read(settings)  # a wrong one is told here, and not by each worker
    worker = _Worker(
        models,
        replace(settings, alpha=settings.alpha / binding.workers),
        counter,
        started,
        os.getpid(),
        max(1, cores // binding.workers),
    )
    config = uvicorn.Config(
        worker,
        factory=True,
        host=binding.host,
        port=binding.port,
        workers=binding.workers,
        lifespan="on",
        access_log=False,  # the gate has its own
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(binding.grace)),
        ssl_certfile=binding.certificate,
        ssl_keyfile=binding.private_key,
        log_config=configuration(binding.log_level),
    )
    for path in (binding.certificate, binding.private_key):
        if path is not None:
            path.open("rb").close()  # a missing file is told here and not by each worker
    folder = tempfile.mkdtemp(prefix="bll-serve-")
    os.environ[FOLDER_VARIABLE] = folder
    try:
        bound = bound_to(binding)
        address = "{}:{}".format(*bound.getsockname()[:2])
        tell("listening", address=address, workers=binding.workers, tls=binding.certificate is not None)
        parent = _Parent(config, [bound])
        parent.counter, parent.started = counter, started
        parent.run()
        bound.close()
    finally:
        del os.environ[FOLDER_VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)
    if parent.failed:
        raise RuntimeError("expected workers that start, got one that did not; the log above says why")


def bound_to(binding: Binding) -> socket.socket:
    """The socket, bound; OSError says what is in the way."""
    family = socket.AF_INET6 if ":" in binding.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((binding.host, binding.port))
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, f"expected a free address, got {binding.host}:{binding.port}: {error.strerror}"
        ) from error
    bound.set_inheritable(True)
    return bound
