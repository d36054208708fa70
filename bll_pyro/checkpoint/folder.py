"""The folder itself, and how parts of a fit reach it.

``bll.fit`` opens the folder (:func:`opened`), and what runs inside asks for it: a value that takes long is computed once
(:func:`kept`), and a loop keeps its state (:func:`part`). Without a folder both do nothing. A context variable carries it, since
what it crosses, such as ``Inference.run``, is the interface of everybody's own inferences.

========================= ==============================================================
file                      what is in it
========================= ==============================================================
checkpoint.json           which fit this is: declaration, data, seed, versions
NAME.safetensors          a part of the fit: its state on the way, or its end
fit/                      the finished fit, as ``fit.save`` writes it; then nothing else
========================= ==============================================================
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from bll_pyro.checkpoint.identity import (
    RECORD,
    Identity,
    key_of,
    read_identity,
    what_differs,
    write_identity,
)
from bll_pyro.checkpoint.part_file import read_part, write_part
from bll_pyro.files import SCRATCH, only_writer
from bll_pyro.scope import Stop, random_state, set_random_state, stopping_late

SECONDS = 30.0  # between two states of a loop,
SHARE = 20  # or as many times what it takes to write one
PATIENCE = (
    10.0  # seconds that an open folder is waited for: what is left of a killed process goes in that time
)
FIT = "fit"  # name of a folder
GO_ON = "what was done is in {folder}: the same call of bll.fit goes on from there"
DAMAGED = "checkpoint: {error}; delete the file to do that part again, or the folder to begin anew"
UNWRITTEN = (
    "checkpoint: {path} could not be written ({error}); the fit goes on, and what was kept before is whole. Make room: a kill "
    "before the next state loses what was done since"
)

UNWRITABLE = "checkpoint: expected a folder that can be written, got {folder} ({error}); make room, or choose another folder"


class Checkpoint:
    """An open folder, which no other process writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ""
        self._numbers = Counter[str]()  # how often a part of a name was asked for
        self._warned = False

    def belongs_to(self, identity: Identity) -> None:
        """Make the folder that of a fit; ValueError, by name, if it is that of another."""
        found = read_identity(self.folder)
        self.key = key_of(identity)
        if found is None:
            others = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if others:
                raise ValueError(
                    f"checkpoint: expected a new folder or one with a {RECORD}, got {self.folder} with {min(others)!r} in it; "
                    "choose another folder"
                )
            try:
                write_identity(self.folder, identity)
            except OSError as error:
                raise OSError(UNWRITABLE.format(folder=self.folder, error=error)) from error
        elif differing := list(what_differs(found, identity)):
            raise ValueError(
                f"checkpoint: expected the fit that was begun in {self.folder}, got another one; what differs: "
                f"{', '.join(differing)}. Choose another folder, or delete this one to begin anew"
            )
        for left in self.folder.glob(f"{SCRATCH}*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def part(self, name: str) -> Part:
        """The next part of a name; of several they are numbered in the order in which they are asked for."""
        self._numbers[name] += 1
        number = self._numbers[name]
        return Part(self, name if number == 1 else f"{name}-{number}")

    def write(self, name: str, state: Any, finished: bool) -> bool:
        """Write a part in place of its earlier state; False, with a warning and the earlier one whole, if the disk is full."""
        path = self._path(name)
        try:
            write_part(path, state, {"fit": self.key, "finished": str(finished)})
        except OSError as error:
            if not self._warned:
                warnings.warn(UNWRITTEN.format(path=path, error=error), UserWarning, stacklevel=2)
            self._warned = True
            return False
        self._warned = False
        return True

    def read(self, name: str) -> tuple[Any, bool] | None:
        """State of a part, and whether it is finished; None where there is none."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            state, notes = read_part(path)
            if notes.get("fit") != self.key:
                raise ValueError(f"expected a part of this fit, got one of another in {path}")
        except ValueError as error:
            raise ValueError(DAMAGED.format(error=error)) from error
        return state, notes.get("finished") == str(True)

    def clear(self) -> None:
        """Delete the parts of a fit that is finished."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class Part:
    """A part of a fit: a loop whose state is kept from time to time, or one value."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self._stop = Stop()
        self._due = time.monotonic() + SECONDS

    def saved(self) -> tuple[Any, bool] | None:
        """The state that was kept, and whether it is the end; None at the first time."""
        return self.checkpoint.read(self.name)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the loop: Ctrl-C and SIGTERM wait for the next :meth:`offer`."""
        with stopping_late() as self._stop:
            yield

    def offer(self, state: Callable[[], Any]) -> None:
        """Keep the state after a step, if it is time or the loop has to stop; a state of None is not worth keeping."""
        asked = self._stop.signal is not None
        if not asked and time.monotonic() < self._due:
            return
        began = time.monotonic()
        content = state()
        written = content is not None and self.checkpoint.write(self.name, content, finished=False)
        now = time.monotonic()
        self._due = now + max(SECONDS, SHARE * (now - began))
        if asked:
            self._stop.now(f"stopped after a step; {self._where(written)}")

    def finish(self, state: Any) -> None:
        """Keep the end."""
        self.checkpoint.write(self.name, state, finished=True)

    def _where(self, written: bool) -> str:
        text = GO_ON.format(folder=self.checkpoint.folder)
        return (
            text
            if written
            else f"its last state could not be written; what was kept before is whole, and {text}"
        )


_CURRENT: ContextVar[Checkpoint | None] = ContextVar("checkpoint", default=None)


def current() -> Checkpoint | None:
    """The folder of the fit that runs; None where nothing is kept."""
    return _CURRENT.get()


def part(name: str) -> Part | None:
    """The next part of a name in the folder of the fit that runs; None where nothing is kept."""
    checkpoint = _CURRENT.get()
    return None if checkpoint is None else checkpoint.part(name)


def kept[T](name: str, compute: Callable[[], T]) -> T:
    """A value of tensors, numbers, lists and dictionaries: computed, or as it was kept, with the random state after it."""
    found = part(name)
    if found is None:
        return compute()
    if (saved := found.saved()) is not None:
        value, state = saved[0]
        set_random_state(state)
        return value  # type: ignore[no-any-return]
    value = compute()
    found.finish((value, random_state()))
    return value


@contextmanager
def opened(folder: Path | None) -> Iterator[Checkpoint | None]:
    """Run a fit that keeps its parts in a folder, or one that keeps nothing, also inside one that does."""
    with ExitStack() as after:
        checkpoint = None
        if folder is not None:
            try:
                after.enter_context(only_writer(folder, patience=PATIENCE))
            except OSError as error:
                raise OSError(UNWRITABLE.format(folder=folder, error=error)) from error
            checkpoint = Checkpoint(folder)
        after.callback(_CURRENT.reset, _CURRENT.set(checkpoint))
        yield checkpoint
