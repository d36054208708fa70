"""A process beside each worker, which ends it when a batch takes too long, and notes which batch that was.

A thread could not: a batch that hangs in C code may hold the interpreter. The note is in the folder of the results, so that whoever
takes the block next, on any machine, leaves the batch out. A worker that dies in a batch by itself, by a crash or for want of
memory, is noted too; the batch is left out when that has happened more often than it is tried again.

The process is this file, run by itself: it reads lines of JSON from the worker, and imports neither torch nor Ray.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOTE = ".left-out.json"  # how the names of notes end, after the name of a part
TIME, DEATH = "time", "death"  # why a batch ended its worker


class Watchdog:
    """Watches the batches of this process.

    Parameters
    ----------
    folder
        Path or URL of the folder for the notes.
    seconds
        Most seconds that a batch may take; None for any.
    """

    def __init__(self, folder: str, seconds: float | None) -> None:
        root = str(Path(__file__).resolve().parents[3])  # where the package is imported from
        paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ray kills the process group of a worker that dies
        )
        weakref.finalize(self, _end, self._process)

    @contextmanager
    def watching(self, part: str, batch: str, row_ids: list[int | str]) -> Iterator[None]:
        """Watch the block: a batch of a part, with these row ids."""
        self._say({"part": part, "batch": batch, "row_ids": row_ids, "seconds": self._seconds})
        try:
            yield
        finally:
            self._say(None)

    def _say(self, message: dict[str, Any] | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process of a watchdog that nobody needs any more."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def note_end(folder: str, watched: dict[str, Any], why: str) -> None:
    """Write down that a batch has ended its worker."""
    from bll_pyro.shards.place import place_of

    place, name = place_of(folder), watched["part"] + NOTE
    notes = json.loads(place.read(name)) if place.size(name) is not None else {}
    found = notes.setdefault(watched["batch"], {"row_ids": watched["row_ids"], TIME: 0, DEATH: 0})
    found[why] += 1
    place.write(name, json.dumps(notes).encode())


def watch(folder: str, worker: int) -> None:
    """Read what a worker says, until it ends."""
    watched: dict[str, Any] | None = None
    deadline: float | None = None
    text = b""
    while True:
        wait = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not select.select([0], [], [], wait)[0]:
            assert watched is not None
            note_end(folder, watched, TIME)
            os.kill(worker, signal.SIGKILL)
            return
        read = os.read(0, 2**16)
        if not read:
            if watched is not None:
                note_end(folder, watched, DEATH)
            return
        *lines, text = (text + read).split(b"\n")
        for line in lines:
            watched = json.loads(line)
            seconds = None if watched is None else watched["seconds"]
            deadline = None if seconds is None else time.monotonic() + seconds


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    watch(sys.argv[1], int(sys.argv[2]))
