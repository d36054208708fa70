"""``Batcher``: rows of many requests are computed together.

It counts rows, not requests: a batch holds at most ``max_rows`` of them, and a request with more comes in parts. A part joins the
queue when the one before is done, so that a large request does not stand in the way of small ones. While a batch is computed, in
a thread, the event loop reads the next requests; so a batch holds what came meanwhile, and a lone request waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from bll_pyro.serve.models import Predicted
from bll_pyro.serve.problems import busy


@dataclass(eq=False)
class _Part:
    """Rows of one request, and its outputs when they are there."""

    rows: np.ndarray
    outputs: asyncio.Future[Predicted]


@dataclass(eq=False)
class Batcher:
    """Collects rows into batches for one function.

    Parameters
    ----------
    compute
        From rows ``[n, ...]`` to arrays ``[n, ...]`` by name; runs in the executor, one call at a time.
    executor
        Where it runs.
    max_rows, max_queued
        Most rows of a batch, and of all that wait or are computed; beyond that :func:`bll_pyro.serve.problems.busy` is raised.
    delay
        Seconds to wait for as many requests as the batch before held.
    observe
        Called with the number of rows of each batch, in the thread.
    """

    compute: Callable[[np.ndarray], Predicted]
    executor: Executor
    max_rows: int
    max_queued: int
    delay: float = 0.0
    observe: Callable[[int], object] = lambda num_rows: None
    num_queued: int = field(default=0, init=False)
    _waiting: deque[_Part] = field(default_factory=deque, init=False)
    _worker: asyncio.Task[None] | None = field(default=None, init=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _seconds_per_row: float = field(default=1e-3, init=False)  # a running average

    async def submit(self, rows: np.ndarray) -> Predicted:
        """The outputs of rows ``[n, ...]``, ``n >= 1``.

        Raises
        ------
        Problem
            503, if too many rows wait; nothing of the request was begun.
        """
        if self.num_queued + len(rows) > self.max_queued:
            raise busy(
                f"expected at most {self.max_queued:,} rows that wait, got {self.num_queued + len(rows):,} with this request; "
                "come again later, or send fewer rows",
                self.num_queued * self._seconds_per_row,
            )
        self.num_queued += len(rows)
        try:
            size = self.max_rows
            found = [await self._part(rows[start : start + size]) for start in range(0, len(rows), size)]
        finally:
            self.num_queued -= len(rows)
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    async def _part(self, rows: np.ndarray) -> Predicted:
        loop = asyncio.get_running_loop()
        part = _Part(rows, loop.create_future())
        self._waiting.append(part)
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await part.outputs

    async def _work(self) -> None:
        """Compute batches until nothing waits."""
        loop, num_parts = asyncio.get_running_loop(), 1
        while self._waiting:
            await self._more(num_parts)
            batch = self._next()
            num_parts = len(batch)
            if batch:
                began = loop.time()
                await loop.run_in_executor(self.executor, self._compute, batch, loop)
                num_rows = sum(len(part.rows) for part in batch)
                self._seconds_per_row += 0.1 * ((loop.time() - began) / num_rows - self._seconds_per_row)
                await asyncio.sleep(0)  # outputs reach their requests, whose next parts then wait

    async def _more(self, num_parts: int) -> None:
        """Wait until as many parts are there as were in the batch before, at most ``delay`` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.delay
        while len(self._waiting) < num_parts and loop.time() < end:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next(self) -> list[_Part]:
        """The parts of the next batch, which are of one shape; those whose request has gone are left out."""
        batch: list[_Part] = []
        num_rows = 0
        while self._waiting:
            part = self._waiting[0]
            if part.outputs.done():  # cancelled: a time-out, or a client that has gone
                self._waiting.popleft()
                continue
            same = not batch or (part.rows.shape[1:], part.rows.dtype) == (
                batch[0].rows.shape[1:],
                batch[0].rows.dtype,
            )
            if not same or num_rows + len(part.rows) > self.max_rows:
                break
            batch.append(self._waiting.popleft())
            num_rows += len(part.rows)
        return batch

    def _compute(self, batch: list[_Part], loop: asyncio.AbstractEventLoop) -> None:
        """Compute a batch in the executor; if that fails, each part alone, so that only the one at fault has the error."""
        try:
            rows = batch[0].rows if len(batch) == 1 else np.concatenate([part.rows for part in batch])
            outputs = self.compute(rows)
            self.observe(len(rows))  # before anyone has an answer, who might look at the numbers
        except Exception as error:  # it belongs to a request, and is raised there
            if len(batch) == 1:
                loop.call_soon_threadsafe(_fail, batch[0].outputs, error)
                return
            for part in batch:
                self._compute([part], loop)
            return
        start, found = 0, []
        for part in batch:
            stop = start + len(part.rows)
            found.append((part.outputs, {name: values[start:stop] for name, values in outputs.items()}))
            start = stop
        loop.call_soon_threadsafe(_deliver, found)


def _deliver(found: list[tuple[asyncio.Future[Predicted], Predicted]]) -> None:
    for future, outputs in found:
        if not future.done():
            future.set_result(outputs)


def _fail(future: asyncio.Future[Predicted], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
