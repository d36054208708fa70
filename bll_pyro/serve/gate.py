"""``Gate``: what every request passes: its id, the key, the limits of size, number and time, the log and the numbers.

An ASGI middleware that lets bodies stream; whatever goes wrong inside is answered as a :class:`~bll_pyro.serve.problems.Problem`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bll_pyro.serve.keys import Keys
from bll_pyro.serve.logs import tell, where
from bll_pyro.serve.monitoring import Monitor
from bll_pyro.serve.problems import Problem, busy
from bll_pyro.serve.settings import ServiceSettings

OPEN = ("/", "/healthz", "/readyz")  # paths that need no key
ALWAYS = (*OPEN, "/metrics")  # paths that are answered however much there is to do
BODIES = 4  # times the limit of one body: bytes of all bodies at work
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
CLOSE = {"Connection": "close"}  # the rest of the body is not read


@dataclass(eq=False)
class _Request:
    """One request on its way."""

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[bytes, bytes]
    id: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    num_bytes: int = 0

    @property
    def path(self) -> str:
        """The path as it is declared, ``/models/{name}/predict``: what a client writes in it is no label and no log."""
        route = self.scope.get("route")
        return str(getattr(route, "path", "(none)"))

    async def answer(self, message: Message) -> None:
        """Send on, with the id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self.send(message)


class Gate:
    """The middleware.

    Parameters
    ----------
    app
        The application behind it.
    settings, keys, monitor
        Limits, keys that are taken, and where requests are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, keys: Keys, monitor: Monitor) -> None:
        self.app, self.settings, self.keys, self.monitor = app, settings, keys, monitor
        self.num_running, self.num_bytes = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection or request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        own = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = own
        request = _Request(scope, receive, send, headers, own)
        self.num_running += 1
        self.monitor.running.inc()
        more: dict[str, Any] = {}
        try:
            more = await self._guarded(request)
        finally:
            self.num_running -= 1
            self.num_bytes -= request.num_bytes
            self.monitor.running.dec()
            seconds = time.perf_counter() - request.began
            self.monitor.answered(request.path, request.status, seconds)
            tell(
                "request",
                request_id=own,
                method=scope["method"] if scope["method"].isalpha() else "(none)",
                path=request.path,
                status=request.status,
                seconds=round(seconds, 6),
                **more,
                **scope.get("told", {}),
            )

    async def _guarded(self, request: _Request) -> dict[str, Any]:
        """Pass a request on; returns what the log should say of an error."""
        problem, more = None, {}
        try:
            self._admit(request)
            async with asyncio.timeout(self.settings.time_limit):
                await self.app(request.scope, self._receiver(request), request.answer)
        except Problem as refused:
            problem = refused
        except TimeoutError:
            problem = Problem(
                504, f"expected an answer within {self.settings.time_limit:g} s, got none; send fewer rows"
            )
        except (
            Exception
        ) as error:  # the last resort: whatever it is, the client gets an answer and the log its place
            problem = Problem(
                500, "expected an answer, got an error of the service; its log has the place, by request_id"
            )
            more = where(error)
            tell("error", logging.ERROR, request_id=request.id, **more)
        if problem is not None and not request.status:
            await problem.response(request.id)(request.scope, request.receive, request.answer)
        return more

    def _admit(self, request: _Request) -> None:
        path = request.scope["path"]
        if path not in OPEN and not self.keys.accept(request.headers):
            raise Problem(
                401,
                "expected an API key, got none or another one; send Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        if self.num_running > self.settings.concurrency and path not in ALWAYS:
            raise busy(
                f"expected at most {self.settings.concurrency:,} requests at a time, got more; come again later",
                1,
            )
        length = request.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.settings.request_bytes:
            raise self._too_long()

    def _too_long(self) -> Problem:
        limit = self.settings.request_bytes
        return Problem(
            413, f"expected a body of at most {limit:,} bytes, got more; send several requests", CLOSE
        )

    def _receiver(self, request: _Request) -> Receive:
        """As ``receive``, with the limits of the body."""
        settings, is_over = self.settings, False
        deadline = asyncio.get_running_loop().time() + settings.body_time_limit

        async def receive() -> Message:
            nonlocal is_over
            if is_over:  # the wait for the end of the connection
                return await request.receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await request.receive()
            except TimeoutError:
                raise Problem(
                    408, f"expected the body within {settings.body_time_limit:g} s, got a part of it", CLOSE
                ) from None
            is_over = not message.get("more_body", False)
            size = len(message.get("body", b""))
            request.num_bytes += size
            self.num_bytes += size
            if request.num_bytes > settings.request_bytes:
                raise self._too_long()
            if self.num_bytes > BODIES * settings.request_bytes:
                raise busy("expected fewer bytes of requests at a time, got more; come again later", 1)
            return message

        return receive
