"""Reading ahead: what comes next is made by a thread while what is there is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any


def made_ahead[T](items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """The same items, made by a thread.

    Besides the one in use there are at most ``depth`` others, those that are being made included. An error of the iterator is
    raised where its item would have come. The thread ends when the generator is closed.
    """
    ready: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    room, stop = threading.Semaphore(depth), threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not stop.is_set():
                item = next(items, ready)  # the queue itself stands for the end
                if item is ready:
                    break
                ready.put(("item", item))
                del item  # held here, it would be one more in memory
        except BaseException as error:
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    thread = threading.Thread(target=make, name="bll_pyro-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            room.release()
            yield value
            del value
    finally:
        stop.set()
        room.release()
        thread.join()
