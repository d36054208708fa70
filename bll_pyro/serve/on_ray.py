"""``ray_application``: the service as three deployments of Ray Serve. It needs the extra ``bll-pyro[ray]``.

=========== ========================================================================================================
deployment  what its replicas do
=========== ========================================================================================================
``Front``   take the requests of Ray's proxy, let them through the gate, pass them on, and ask again where a replica died
``Models``  hold the models, and answer by the paths of :func:`bll_pyro.serve.application`; these are to be many
``Numbers`` one replica, that sums the numbers of all others for ``GET /metrics``, and watches all of their rows for drift
=========== ========================================================================================================

A prediction changes nothing, so one that was lost with its replica is computed again by another one.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.deployment import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bll_pyro.serve.app import check_names, paths_of
from bll_pyro.serve.gate import ALWAYS, Gate
from bll_pyro.serve.keys import Keys
from bll_pyro.serve.logs import configuration, tell, where
from bll_pyro.serve.monitoring import Monitor
from bll_pyro.serve.passing import Answered, Asked, answer_of, asked_of
from bll_pyro.serve.problems import busy
from bll_pyro.serve.service import ModelLoader, Service
from bll_pyro.serve.settings import ServiceSettings
from bll_pyro.serve.summing import NumbersReport, Outbox, SummedNumbers

ATTEMPTS = 3  # replicas that a request may be lost with: one that kills them must not kill all
REPORT_SECONDS = 1.0
LOOK_SECONDS = 0.05
HEALTH_SECONDS = 2.0  # between looks of Ray Serve at a replica: one that has died is replaced so much later
CONSTRUCTIONS = 3  # attempts to start a replica before the deployment fails
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # the gate has a log of its own


class _Reporting:
    """Sends reports to ``Numbers`` as long as the replica lives."""

    def __init__(self, outbox: Outbox, numbers: DeploymentHandle, monitor: Monitor) -> None:
        self.outbox, self.numbers, self.monitor = outbox, numbers, monitor
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def send(self) -> None:
        """Send one report, until it has come."""
        report = self.outbox.report(self.monitor)
        while True:
            try:
                await self.numbers.add.remote(report)
                return
            except (RayActorError, BackPressureError, DeploymentUnavailableError):
                await asyncio.sleep(REPORT_SECONDS)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            try:
                await self.send()
            except Exception as error:  # a report that is refused must not be the last one
                tell("report failed", logging.ERROR, **where(error))


class Numbers:
    """Sums up reports, one replica for all."""

    def __init__(self, alpha: float, log_level: str) -> None:
        logging.config.dictConfig(configuration(log_level))
        self.sums, self._lock = SummedNumbers(alpha), asyncio.Lock()

    async def add(self, report: NumbersReport) -> None:
        """Take in a report; in a thread, since the first one may load torch for the watch."""
        async with self._lock:
            await asyncio.to_thread(self.sums.add, report, time.monotonic())

    async def text(self) -> bytes:
        """All numbers, for Prometheus."""
        async with self._lock:
            return await asyncio.to_thread(self.sums.text, time.monotonic())


class Models:
    """Holds the models."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        models: Mapping[str, ModelLoader],
        settings: ServiceSettings,
        numbers: DeploymentHandle,
        log_level: str,
    ) -> None:
        logging.config.dictConfig(configuration(log_level))
        outbox = Outbox(serve.get_replica_context().replica_id.unique_id)
        self.service = Service(models, settings, outbox)
        self.paths = paths_of(self.service)
        await self.service.start()
        self.reporting = _Reporting(outbox, numbers, self.service.monitor)

    async def answer(self, asked: Asked) -> Answered:
        """The answer to one request."""
        answered = await answer_of(self.paths, asked)
        return replace(answered, told={**answered.told, "replica": self.reporting.outbox.source})

    async def reload(self) -> bool:
        """Load all models anew while the old ones serve; whether all could be loaded."""
        return await self.service.reload()

    async def check_health(self) -> None:
        """Ray Serve replaces the replica if this raises, or does not return in time."""
        await self.service.check()


class Front:
    """Takes requests."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        models: DeploymentHandle,
        numbers: DeploymentHandle,
        settings: ServiceSettings,
        keys: Keys,
        log_level: str,
    ) -> None:
        logging.config.dictConfig(configuration(log_level))
        self.models, self.numbers = models, numbers
        self.is_closing = False
        monitor = Monitor()
        self.gate = Gate(self._pass, settings, keys, monitor)
        outbox = Outbox(serve.get_replica_context().replica_id.unique_id)
        self.reporting = _Reporting(outbox, numbers, monitor)

    async def __call__(self, request: Request) -> Response:
        """One request of the proxy, through the gate."""
        prefix = request.scope.get("root_path", "")
        scope = {**request.scope, "path": request.scope["path"].removeprefix(prefix) or "/", "root_path": ""}
        status, headers, parts = 500, MutableHeaders(), []

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.raw.extend(message["headers"])
            else:
                parts.append(message.get("body", b""))

        await self.gate(scope, request.receive, send)
        return Response(b"".join(parts), status, headers)

    async def close(self, seconds: float) -> bool:
        """Refuse what comes from now on, and wait for what runs; whether all of it was answered in time."""
        self.is_closing = True
        end = time.monotonic() + seconds
        while self.gate.num_running and time.monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
        return not self.gate.num_running

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application behind the gate."""
        if self.is_closing and scope["path"] not in ALWAYS:
            raise busy("expected a service that goes on, got one that stops; come again later", 2)
        asked = await asked_of(scope, receive)
        if asked is None:  # the client has gone
            return
        if (asked.method, asked.path) == ("GET", "/metrics"):
            await self.reporting.send()  # so that what this replica has answered is in them
            text = await self.numbers.text.remote()
            answered = Answered(200, [(b"content-type", b"text/plain; version=0.0.4")], text, asked.path)
        else:
            answered = await self._answer(asked)
        scope["route"], scope["told"] = SimpleNamespace(path=answered.path), answered.told
        await send(
            {"type": "http.response.start", "status": answered.status, "headers": list(answered.headers)}
        )
        await send({"type": "http.response.body", "body": answered.body})

    async def _answer(self, asked: Asked) -> Answered:
        """That of a replica; of another one if it dies meanwhile."""
        for attempt in range(ATTEMPTS):
            try:
                answered: Answered = await self.models.answer.remote(asked)
            except RayActorError as error:
                tell(
                    "replica lost",
                    logging.WARNING,
                    request_id=asked.request_id,
                    attempt=attempt + 1,
                    error=type(error).__name__,
                )
            except (BackPressureError, DeploymentUnavailableError):
                raise busy("expected fewer requests that wait, got more; come again later", 1) from None
            else:
                return answered
        raise busy(f"expected an answer, got none from {ATTEMPTS} replicas that died; send fewer rows", 5)


def ray_application(
    models: Mapping[str, ModelLoader],
    settings: ServiceSettings | None = None,
    replicas: Mapping[str, Any] | None = None,
    fronts: Mapping[str, Any] | None = None,
    grace: float = 30.0,
    log_level: str = "info",
) -> Application:
    """The service for ``ray.serve.run``.

    Parameters
    ----------
    models
        As for :func:`bll_pyro.serve.application`; the functions go to the replicas by pickle, and are called there.
    settings
        Limits. Those of rows are of each replica of ``Models``, all others of each of ``Front``.
    replicas, fronts
        Options of Ray Serve for the deployments ``Models`` and ``Front``, such as ``{"num_replicas": 2}`` or
        ``{"autoscaling_config": {"min_replicas": 1, "max_replicas": 8}}``.
    grace
        Seconds that requests have to end when a replica is stopped.
    log_level
        ``"info"`` logs every request, ``"warning"`` only trouble.

    Raises
    ------
    ValueError
        If there is no model, a name is no word, a key is too short, or Ray Serve refuses an option.
    """
    check_names(models)
    settings = settings or ServiceSettings()
    keys = Keys.read(settings)
    # keys go on as digests, and the environment not at all
    inner = replace(settings, key_file=None, environment={})
    common = {
        "logging_config": QUIET,
        "max_constructor_retry_count": CONSTRUCTIONS,
        "graceful_shutdown_timeout_s": grace,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_SECONDS,
    }
    held = {"max_ongoing_requests": settings.concurrency}
    front = {
        "ray_actor_options": {"num_cpus": 0},
        # more than the gate lets through, so that it can refuse them
        "max_ongoing_requests": 2 * settings.concurrency,
        "max_queued_requests": settings.concurrency,
        "backpressure_config": {"retry_after_s": 1},
    }
    number = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 1000}
    summed = serve.deployment(Numbers, **common | number).bind(settings.alpha, log_level)
    answering = serve.deployment(Models, **common | held | dict(replicas or {}))
    bound = answering.bind(dict(models), inner, summed, log_level)
    fronted = serve.deployment(Front, **common | front | dict(fronts or {}))
    return fronted.bind(bound, summed, inner, keys, log_level)
