"""Services for tests: models, and a client that calls an application without a server."""

import asyncio
import io
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np

from bll_pyro.serve import ServedModel

WIDTH, NUM_CLASSES = 4, 3
JSON = {"content-type": "application/json"}
NPY = {"content-type": "application/x-npy"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


@cache
def fit() -> Any:
    """Three classes, four features, with a detector."""
    import torch

    import bll_pyro as bll

    random = torch.Generator().manual_seed(0)
    x = torch.randn(240, WIDTH, generator=random)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES))
    made = bll.fit(layer, (x[:160], y[:160]), inference=bll.Laplace())
    return made.with_detector(bll.ood.Detector(bll.ood.Leverage(), alpha=0.1).calibrate(made, x[160:]))


def rows(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, WIDTH)).astype(np.float32)


def softmax_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """A model that needs no library: class probabilities of the first three columns, and each row's sum as its score."""
    odds = np.exp(np.clip(rows[:, :NUM_CLASSES], -30, 30).astype(np.float64))
    probs = odds / odds.sum(1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(1)
    score = rows.astype(np.float64).sum(1)
    p_value = 1 / (1 + np.exp(np.clip(score, -30, 30)))
    return {
        "probs": probs,
        "total": entropy,
        "aleatoric": 0.75 * entropy,
        "epistemic": 0.25 * entropy,
        "score": score,
        "p_value": p_value,
        "is_ood": p_value < 0.1,
    }


def light(seconds: float = 0.0) -> ServedModel:
    """A model that loads at once; a batch takes it so many seconds."""

    def predict(given: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(seconds)
        return softmax_of(given)

    return ServedModel(
        predict, (WIDTH,), ["ant", "bee", "cat"], {"kind": "light"}, has_detector=True, threshold=2.2
    )


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@dataclass(frozen=True)
class Answer:
    """Status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Calls an ASGI application in an event loop of its own; a context, in which the application is started."""

    def __init__(self, app: Any) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()
        self.lifespan = app.router.lifespan_context(app)

    def __enter__(self) -> Self:
        try:
            self.loop.run_until_complete(self.lifespan.__aenter__())
        except BaseException:
            self.loop.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.run_until_complete(self.lifespan.__aexit__(None, None, None))
        self.loop.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.loop.run_until_complete(self.send("GET", path, headers or {}, [b""]))

    def post(
        self, path: str, body: bytes | Iterable[bytes] | dict[str, Any], headers: Mapping[str, str] = JSON
    ) -> Answer:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        chunks = [body] if isinstance(body, bytes) else list(body)
        return self.loop.run_until_complete(self.send("POST", path, headers, chunks))

    def together(self, *calls: Any) -> list[Answer]:
        """Requests side by side: what :meth:`send` returns."""

        async def gathered() -> list[Answer]:
            return list(await asyncio.gather(*calls))

        return self.loop.run_until_complete(gathered())

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], chunks: list[bytes], pause: float = 0.0
    ) -> Answer:
        """One request; ``pause``: seconds before each chunk of the body."""
        plain, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": plain, "raw_path": plain.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        waiting, started, parts = list(chunks), {}, []

        async def receive() -> dict[str, Any]:
            if not waiting:
                await asyncio.sleep(3600)
            if pause:
                await asyncio.sleep(pause)
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                parts.append(message.get("body", b""))

        await self.app(scope, receive, answer)
        named = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in started["headers"]
        }
        return Answer(started["status"], named, b"".join(parts))
