"""Files and folders on disk: paths as the user means them, one writer at a time, nothing left of a write that failed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH = ".partial-"  # how the names of scratch folders begin
LOCK = ".lock"  # name of the file by which writers of a folder exclude each other
NUM_TRIES = 1000  # how often a folder that goes again is made anew


def user_path(path: str | Path) -> Path:
    """The path as it is meant now: ``~`` is the home folder, and a relative path starts in the present folder."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(
            f"expected the home folder of a user of this machine, got {str(path)!r}: {error}; write the path in full"
        ) from error


@contextmanager
def only_writer(folder: Path, name: str = LOCK, patience: float = -1) -> Iterator[None]:
    """Run the block while no other thread and no other process is in such a block for the same folder and name.

    The folder is made where it is missing, and goes again if the block fails and nothing is in it. The lock is the hidden
    file ``name`` in the folder, which is deleted at the end; the operating system frees it if the process dies. A negative
    ``patience``, in seconds, waits for ever.

    Raises
    ------
    ValueError
        If ``folder``, or one that should hold it, is a file, or another writer is still there when the patience ends.
    """
    from filelock import FileLock, Timeout

    if file := next((part for part in (folder, *folder.parents) if part.is_file()), None):
        raise ValueError(f"expected a folder, got the file {file}; choose another path")
    lock, made, done = FileLock(folder / name, poll_interval=0.01), [], False
    try:
        for attempt in range(NUM_TRIES):
            try:
                for part in (*reversed(folder.parents), folder):
                    if not part.exists():
                        part.mkdir(exist_ok=True)
                        made.append(part)
                lock.acquire(timeout=patience)
                break
            except Timeout as error:
                raise ValueError(
                    f"expected a folder that nobody else writes to, got {folder}, which another process or thread is using; wait "
                    "for it to end, or choose another folder"
                ) from error
            except (FileNotFoundError, FileExistsError):
                # a writer that failed has just removed the folder that it had made
                if attempt == NUM_TRIES - 1:
                    raise
        yield
        done = True
    finally:
        if lock.is_locked:
            # deleted while it is held: whoever waits for this file sees that it has no name any more, and makes a new one
            with suppress(OSError):  # Windows keeps the name of an open file
                (folder / name).unlink()
            lock.release()
        if not done:
            for part in reversed(made):
                with suppress(OSError):  # something is in it
                    part.rmdir()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in ``parent``, for files that are moved to their place once they are complete.

    It is deleted at the end with all that is still in it.
    """
    folder = parent / f"{SCRATCH}{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
