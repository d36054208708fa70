"""Micro-batching: rows are counted, large requests come in parts, nothing is mixed up, and the queue has an end."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bll_pyro.serve.batching import Batcher
from bll_pyro.serve.problems import Problem


class Counting:
    """Doubles rows, and keeps the size of every batch."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        self.seconds, self.running = seconds, threading.Lock()

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        assert self.running.acquire(blocking=False), "two batches at a time"
        self.sizes.append(len(rows))
        time.sleep(self.seconds)
        self.running.release()
        if (rows < 0).any():
            raise ValueError("negative")
        return {"twice": 2 * rows, "sum": rows.sum(1)}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def numbered(num_rows: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + 2 * num_rows, dtype=np.float32).reshape(num_rows, 2)


def test_requests_share_batches_that_never_pass_the_limit(executor: ThreadPoolExecutor) -> None:
    """Of every size, each gets its own rows back."""
    random = np.random.default_rng(0)
    given = [numbered(int(n), 1000 * k) for k, n in enumerate(random.integers(1, 60, 80))]
    compute = Counting(0.001)

    async def run() -> list[dict[str, np.ndarray]]:
        batcher = Batcher(compute, executor, 32, 10_000, 0.002)
        found = await asyncio.gather(*(batcher.submit(rows) for rows in given))
        assert batcher.num_queued == 0
        return list(found)

    for rows, outputs in zip(given, asyncio.run(run()), strict=True):
        np.testing.assert_array_equal(outputs["twice"], 2 * rows)
        np.testing.assert_array_equal(outputs["sum"], rows.sum(1))
    assert max(compute.sizes) <= 32 and sum(compute.sizes) == sum(map(len, given))
    assert len(compute.sizes) < 1.5 * sum(map(len, given)) / 32 + 20


def test_a_large_request_lets_small_ones_through(executor: ThreadPoolExecutor) -> None:
    compute = Counting(0.005)

    async def run() -> tuple[float, float]:
        batcher, began = Batcher(compute, executor, 10, 10_000), time.perf_counter()
        large = asyncio.create_task(batcher.submit(numbered(400)))
        await asyncio.sleep(0.01)
        await batcher.submit(numbered(3))
        small_took = time.perf_counter() - began
        await large
        return small_took, time.perf_counter() - began

    small, large = asyncio.run(run())
    assert max(compute.sizes) == 10 and len(compute.sizes) >= 40
    assert small < large / 3


def test_a_lone_request_does_not_wait_for_others(executor: ThreadPoolExecutor) -> None:
    async def run() -> float:
        batcher, began = Batcher(Counting(), executor, 10, 100, delay=5.0), time.perf_counter()
        for _ in range(5):
            await batcher.submit(numbered(1))
        return time.perf_counter() - began

    assert asyncio.run(run()) < 2.0


def test_requests_side_by_side_meet_again_in_the_next_batch(executor: ThreadPoolExecutor) -> None:
    """Clients that ask again as soon as they are answered: the batch waits for all of them, not for the first."""
    compute = Counting(0.002)

    async def client(batcher: Batcher) -> None:
        for _ in range(10):
            await batcher.submit(numbered(1))
            await asyncio.sleep(0.001)

    async def run() -> None:
        batcher = Batcher(compute, executor, 100, 1000, delay=1.0)
        await asyncio.gather(*(client(batcher) for _ in range(8)))

    asyncio.run(run())
    assert sorted(compute.sizes)[-9:] == [8] * 9


def test_an_error_is_of_the_request_at_fault(executor: ThreadPoolExecutor) -> None:
    async def run() -> list[object]:
        batcher = Batcher(Counting(0.005), executor, 100, 1000)
        given = [numbered(2), numbered(3), -1 - numbered(1), numbered(4)]
        return list(await asyncio.gather(*(batcher.submit(rows) for rows in given), return_exceptions=True))

    found = asyncio.run(run())
    assert [isinstance(one, ValueError) for one in found] == [False, False, True, False]


def test_a_full_queue_refuses_and_takes_again_later(executor: ThreadPoolExecutor) -> None:
    async def run() -> None:
        batcher = Batcher(Counting(0.01), executor, 4, 20)
        first = [asyncio.create_task(batcher.submit(numbered(5))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await batcher.submit(numbered(1))
        assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
        await asyncio.gather(*first)
        await batcher.submit(numbered(20))
        with pytest.raises(Problem):
            await batcher.submit(numbered(21))
        assert batcher.num_queued == 0

    asyncio.run(run())


def test_rows_of_a_request_that_is_gone_are_not_computed(executor: ThreadPoolExecutor) -> None:
    compute = Counting(0.02)

    async def run() -> None:
        batcher = Batcher(compute, executor, 4, 100)
        first = asyncio.create_task(batcher.submit(numbered(4)))
        await asyncio.sleep(0.005)
        gone = asyncio.create_task(batcher.submit(numbered(40)))
        await asyncio.sleep(0.005)
        gone.cancel()
        await first
        await batcher.submit(numbered(2))
        assert batcher.num_queued == 0

    asyncio.run(run())
    assert compute.sizes == [4, 2]


def test_rows_of_two_shapes_are_computed_apart(executor: ThreadPoolExecutor) -> None:
    compute = Counting(0.002)

    async def run() -> list[dict[str, np.ndarray]]:
        batcher = Batcher(compute, executor, 100, 1000)
        wide = np.ones((3, 5), np.float32)
        return list(
            await asyncio.gather(*(batcher.submit(r) for r in (numbered(2), wide, numbered(1), wide)))
        )

    assert [found["twice"].shape for found in asyncio.run(run())] == [(2, 2), (3, 5), (1, 2), (3, 5)]
