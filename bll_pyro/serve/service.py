"""``Service``: the models by name, and predictions of rows by them; independent of HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from bll_pyro.serve.batching import Batcher
from bll_pyro.serve.logs import tell, where
from bll_pyro.serve.models import NUM_DRAWS, Predicted, ServedModel
from bll_pyro.serve.monitoring import Monitor
from bll_pyro.serve.problems import Problem, busy
from bll_pyro.serve.settings import ServiceSettings
from bll_pyro.serve.watching import Version, Watches, version_of

ModelLoader = Callable[[], ServedModel]
DRAWN_NUMBERS = 2**22  # draws x rows x classes of intervals at a time


class WatchesLike(Protocol):
    """What :class:`Watches` does."""

    def begin(self, name: str, version: Version | None) -> None:
        """A model was loaded."""

    def update(self, name: str, p_values: np.ndarray) -> None:
        """A batch was predicted."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A model that was loaded, with its queues. A request keeps the one that it began with, also through a reload.

    Parameters
    ----------
    name
        In paths and numbers.
    model
        What is served.
    batches, interval_batches
        Queues of predictions, and of intervals (None where the model has none).
    loaded_at
        Seconds since 1970.
    """

    name: str
    model: ServedModel
    batches: Batcher
    interval_batches: dict[float, Batcher] = field(default_factory=dict)
    loaded_at: float = field(default_factory=time.time)


class Service:
    """The models of one process.

    Parameters
    ----------
    loaders
        Functions that load a model, by name; the first is that of ``/predict``. They are called at the start and at each reload.
    settings
        Limits.
    watches
        What takes the p-values of the rows; None watches for drift in this process.
    """

    def __init__(
        self,
        loaders: Mapping[str, ModelLoader],
        settings: ServiceSettings,
        watches: WatchesLike | None = None,
    ) -> None:
        self.loaders, self.settings, self.monitor = dict(loaders), settings, Monitor()
        self.served: dict[str, Entry] = {}
        self._computing = {name: ThreadPoolExecutor(1, f"bll-{name}") for name in self.loaders}
        self.reading = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "bll-read")  # bodies and images
        self.watches = watches or Watches(settings.alpha, self.monitor)
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Load all models.

        Raises
        ------
        Exception
            That of the first loader that fails.
        """
        for name in self.loaders:
            try:
                self.served[name] = await self._load(name)
            except Exception as error:
                tell("model failed", logging.ERROR, model=name, message=str(error)[:500])
                raise

    async def check(self) -> None:
        """Return when the thread of each model has taken up new work: one that hangs never does.

        Raises
        ------
        Problem
            503, before a model is loaded.
        """
        loop = asyncio.get_running_loop()
        for name in self.loaders:
            self.find(name)
            await loop.run_in_executor(self._computing[name], time.perf_counter)

    async def stop(self) -> None:
        """Let the threads go."""
        for executor in (*self._computing.values(), self.reading):
            executor.shutdown(wait=False, cancel_futures=True)

    async def reload(self) -> bool:
        """Load all models again; each takes over when it is ready, and one that cannot be loaded leaves the old one in place."""
        is_done = True
        async with self._reloading:
            for name in self.loaders:
                try:
                    self.served[name] = await self._load(name)
                except Exception as error:  # a file that is damaged must not stop what is served
                    self.monitor.reloads.labels(name, "failed").inc()
                    tell("reload failed", logging.ERROR, model=name, message=str(error)[:500], **where(error))
                    is_done = False
                else:
                    self.monitor.reloads.labels(name, "done").inc()
                    tell("reload", model=name)
        return is_done

    async def _load(self, name: str) -> Entry:
        """Load in a thread of its own, so that the model that is there goes on."""

        def loaded() -> ServedModel:
            model = self.loaders[name]()
            model.warm_up()
            return model

        began = time.perf_counter()
        model = await asyncio.to_thread(loaded)
        tell("model", model=name, seconds=round(time.perf_counter() - began, 3), **_known(model.metadata))
        await asyncio.to_thread(self.watches.begin, name, version_of(model))
        batches = self._batcher(name, partial(self._watched, name, model), self.settings.batch_rows)
        batches.observe = self.monitor.batch_rows.labels(name).observe
        return Entry(name, model, batches)

    def _batcher(self, name: str, compute: Callable[[np.ndarray], Predicted], max_rows: int) -> Batcher:
        given = self.settings
        return Batcher(compute, self._computing[name], max_rows, given.queued_rows, given.batch_delay)

    def find(self, name: str | None) -> Entry:
        """A model by name; None is the first.

        Raises
        ------
        Problem
            404 if there is none, 503 before it is loaded.
        """
        if name is None:
            name = next(iter(self.loaders))
        if name not in self.loaders:
            raise Problem(404, f"expected one of the models {', '.join(self.loaders)}, got another name")
        if name not in self.served:
            raise busy("expected a model that is loaded, got one that is being loaded; come again later", 2)
        return self.served[name]

    async def predict(self, served: Entry, rows: np.ndarray, interval: float | None = None) -> Predicted:
        """Predict rows that were checked; ``interval``: with ``lower`` and ``upper`` ends of class probabilities.

        Raises
        ------
        Problem
            503 if too much waits; 422 if the model refuses the rows or has no finite prediction.
        """
        queued = self.monitor.queued_rows.labels(served.name)
        queued.inc(len(rows))
        try:
            outputs = await served.batches.submit(rows)
            if interval is not None:
                outputs = outputs | await self._intervals(served, interval).submit(rows)
        except ValueError as error:  # what the checks of the fit refuse
            raise Problem(422, "expected rows that the model takes, got others; see GET /model") from error
        finally:
            queued.dec(len(rows))
        _check_finite(outputs)
        self.monitor.predicted(served.name, outputs)
        return outputs

    def _intervals(self, served: Entry, prob: float) -> Batcher:
        """The queue of intervals of one probability."""
        intervals = served.model.intervals
        if intervals is None:
            raise Problem(422, "expected no interval: this model has no draws of class probabilities")
        if prob not in served.interval_batches:
            if len(served.interval_batches) >= 16:  # a queue is small, but a client may ask for any number
                served.interval_batches.clear()
            size = DRAWN_NUMBERS // (NUM_DRAWS * max(len(served.model.classes or ()), 2))
            rows = max(1, min(self.settings.batch_rows, size))
            served.interval_batches[prob] = self._batcher(
                served.name, lambda given: intervals(given, prob), rows
            )
        return served.interval_batches[prob]

    def _watched(self, name: str, model: ServedModel, rows: np.ndarray) -> Predicted:
        """Predict a batch, in its thread; the p-values of the detector tell of drift."""
        outputs = model.predict(rows)
        if "p_value" in outputs:
            self.watches.update(name, outputs["p_value"])
        return outputs


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"fingerprint": metadata["fingerprint"]} if "fingerprint" in metadata else {}


def _check_finite(outputs: Predicted) -> None:
    for values in outputs.values():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int((~np.isfinite(values.reshape(len(values), -1)).all(1)).argmax())
            raise Problem(
                422,
                f"expected a row with a finite prediction, got none for row {row}: its numbers are too large",
                row=row,
            )
