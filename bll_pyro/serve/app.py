"""``application``: the paths of the service, as a FastAPI application that knows no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from bll_pyro import __version__
from bll_pyro.serve.answers import answer, description
from bll_pyro.serve.bodies import ARROW, JSON, NPY, rows_of_arrow, rows_of_json, rows_of_npy
from bll_pyro.serve.gate import Gate
from bll_pyro.serve.images import row_of_image
from bll_pyro.serve.keys import Keys
from bll_pyro.serve.models import Predicted
from bll_pyro.serve.openapi import PREDICT, documented
from bll_pyro.serve.page import HEADERS, page
from bll_pyro.serve.problems import Problem, answer_http_error, answer_problem
from bll_pyro.serve.service import Entry, ModelLoader, Service
from bll_pyro.serve.settings import ServiceSettings

READERS = {JSON: rows_of_json, NPY: rows_of_npy, ARROW: rows_of_arrow}
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
FORM = "multipart/form-data"
READ_AT_ONCE = 2**17  # bytes of a body that are read in the event loop; larger ones in a thread
IMAGES_AT_ONCE = 32
MOST_FIELDS = 10  # of a form, beside its files


def application(models: Mapping[str, ModelLoader], settings: ServiceSettings | None = None) -> FastAPI:
    """The service as an ASGI application, for any server.

    Parameters
    ----------
    models
        Functions without arguments that load a :class:`ServedModel`, by name, such as
        ``functools.partial(open_model, "flowers.onnx")``.
    settings
        Limits; None takes the defaults.

    Raises
    ------
    ValueError
        If there is no model, a name is no word, or a key is too short.
    """
    check_names(models)
    settings = settings or ServiceSettings()
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = paths_of(service, lifespan)
    app.add_middleware(Gate, settings, Keys.read(settings), service.monitor)
    return app


def check_names(models: Mapping[str, ModelLoader]) -> None:
    """ValueError if there is no model, or a name is no word."""
    if not models or not all(name.replace("-", "_").isidentifier() for name in models):
        raise ValueError(
            f"application: expected models by names of letters, digits, - and _, got {', '.join(map(repr, models)) or 'none'}"
        )


def paths_of(service: Service, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The paths of a service, without the gate before them: no key is asked for, and nothing limits a request but its rows."""
    app = FastAPI(
        title="bll serve",
        version=__version__,
        docs_url=None,  # their pages ask other hosts for scripts
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={Problem: answer_problem, HTTPException: answer_http_error},
    )
    app.state.service = service
    _add_paths(app, Paths(service))
    app.openapi = lambda: documented(app, service)  # type: ignore[method-assign]
    return app


def _add_paths(app: FastAPI, paths: Paths) -> None:
    for path, summary in (
        ("/predict", "Predict rows by the first model"),
        ("/models/{name}/predict", "Predict rows"),
    ):
        app.add_api_route(path, paths.predict, methods=["POST"], summary=summary, openapi_extra=PREDICT)
    for path, endpoint, summary in (
        ("/model", paths.model, "What the first model is"),
        ("/models/{name}", paths.model, "What a model is"),
        ("/models", paths.models, "All models"),
        ("/healthz", paths.healthz, "Whether the process answers"),
        ("/readyz", paths.readyz, "Whether all models are loaded"),
        ("/metrics", paths.metrics, "Numbers for Prometheus, summed over the workers"),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], summary=summary)
    app.add_api_route("/", paths.page, methods=["GET"], include_in_schema=False)


class Paths:
    """What the paths answer."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def predict(self, request: Request) -> Response:
        """Rows in, predictions out; see the examples of the body."""
        served = self.service.find(request.path_params.get("name"))
        interval = _interval(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == FORM or kind in IMAGES:
            outputs = await self._images(served, await self._contents(request, kind), interval)
        elif kind in READERS:
            outputs = await self.service.predict(served, await self._rows(request, kind, served), interval)
        else:
            raise Problem(
                415,
                f"expected one of the content types {', '.join((*READERS, FORM, *IMAGES))}, got another one",
            )
        request.scope["told"] = {"model": served.name, "num_rows": len(outputs["total"])}
        return Response(to_json(answer(served, outputs)), media_type=JSON)

    async def model(self, request: Request) -> Response:
        """Classes, shape of a row, columns, detector, and what the model says of itself."""
        served = self.service.find(request.path_params.get("name"))
        return _json(description(served))

    async def models(self, request: Request) -> Response:
        """Names of all models; the first is that of ``/predict``."""
        return _json({"models": list(self.service.loaders)})

    async def healthz(self, request: Request) -> Response:
        """200 as long as the process answers."""
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """200 once all models are loaded."""
        for name in self.service.loaders:
            self.service.find(name)
        return _json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """In the text format of Prometheus."""
        text = await asyncio.to_thread(self.service.monitor.text)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """A page to try it."""
        return Response(page(), media_type="text/html", headers=HEADERS)

    async def _rows(self, request: Request, kind: str, served: Entry) -> np.ndarray:
        body, most = await request.body(), self.service.settings.request_rows
        if len(body) <= READ_AT_ONCE:
            return READERS[kind](body, served.model, most)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.service.reading, READERS[kind], body, served.model, most)

    async def _contents(self, request: Request, kind: str) -> list[bytes]:
        """The bytes of the images of a request. Names of files are not looked at."""
        if kind != FORM:
            return [await request.body()]
        most = self.service.settings.request_rows
        async with request.form(max_files=most, max_fields=MOST_FIELDS) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise Problem(422, "expected a form with one image file or more, got none")
            return [await file.read() for file in files]

    async def _images(self, served: Entry, contents: list[bytes], interval: float | None) -> Predicted:
        """Predict images some at a time, so that few of them are decoded together."""
        if served.model.prepare is None:
            raise Problem(
                415, "expected rows of numbers, got images: this model does not take them; see GET /model"
            )
        loop, most, found = asyncio.get_running_loop(), self.service.settings.image_pixels, []
        for start in range(0, len(contents), IMAGES_AT_ONCE):
            some = contents[start : start + IMAGES_AT_ONCE]
            rows = await asyncio.gather(
                *(
                    loop.run_in_executor(
                        self.service.reading, row_of_image, content, served.model, most, start + number
                    )
                    for number, content in enumerate(some)
                )
            )
            if len({row.shape for row in rows}) > 1:
                raise Problem(
                    422, "expected images of one size in a request, got several: this model does not resize"
                )
            found.append(await self.service.predict(served, np.stack(rows), interval))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _interval(request: Request) -> float | None:
    """The probability of ``?interval=0.9``."""
    text = request.query_params.get("interval")
    if text is None:
        return None
    try:
        prob = round(float(text), 6)
    except ValueError:
        prob = 0.0
    if not 0 < prob < 1:
        raise Problem(422, "interval: expected a probability between 0 and 1, such as 0.9")
    return prob


def _json(data: object) -> Response:
    return Response(to_json(data), media_type=JSON)
