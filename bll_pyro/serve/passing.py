"""Requests and answers as plain data, which go from one process to another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope

Headers = Sequence[tuple[bytes, bytes]]
PASSED = (b"content-type", b"accept")  # of the headers of a request: keys and cookies stay where they came


@dataclass(frozen=True)
class Asked:
    """A request.

    Parameters
    ----------
    method, path, query, headers, body
        As in ASGI; the path without the prefix of the application.
    request_id
        Of its log.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    request_id: str


@dataclass(frozen=True)
class Answered:
    """An answer.

    Parameters
    ----------
    status, headers, body
        As in ASGI.
    path
        As it is declared, ``/models/{name}/predict``.
    told
        What the log should say of it.
    """

    status: int
    headers: Headers
    body: bytes
    path: str
    told: Mapping[str, Any] = field(default_factory=dict)


async def asked_of(scope: Scope, receive: Receive) -> Asked | None:
    """The request of a connection, with all of its body; None if the client has gone."""
    body, is_whole = bytearray(), False
    while not is_whole:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
    headers = [(name, value) for name, value in scope["headers"] if name in PASSED]
    return Asked(
        scope["method"], scope["path"], scope["query_string"], headers, bytes(body), scope["request_id"]
    )


async def answer_of(app: ASGIApp, asked: Asked) -> Answered:
    """The answer of an application to a request."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query,
        "root_path": "",
        "headers": list(asked.headers),
        "request_id": asked.request_id,
        "state": {},
    }
    waiting = [asked.body]
    start: dict[str, Any] = {}
    parts: list[bytes] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": waiting.pop(), "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    path = getattr(scope.get("route"), "path", "(none)")
    return Answered(start["status"], start["headers"], b"".join(parts), str(path), scope.get("told", {}))
