"""A folder of results that is either whole or not there: made beside its place and moved into it at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_when_complete(target: Path, contents: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without an error it takes the place of `target`.

    Parameters
    ----------
    target
        Where the results belong. An earlier folder there stays whole until the new one is complete.
    contents
        Names that the results may have. An earlier folder that holds anything else is not replaced.

    Raises
    ------
    ValueError
        Before any work, when `target` is no folder or holds other files, which replacing would delete.
    """
    target = Path(os.path.abspath(target))  # the current folder may change on the way
    _check_replaceable(target, contents)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    fresh, earlier = beside / "new", beside / "earlier"
    try:
        fresh.mkdir()
        yield fresh
        _check_replaceable(target, contents)  # it may have changed meanwhile
        if target.exists():
            target.rename(earlier)
        fresh.rename(target)
    finally:
        if earlier.exists() and not target.exists():  # interrupted between the two
            earlier.rename(target)
        shutil.rmtree(beside, ignore_errors=True)


def _check_replaceable(target: Path, contents: Collection[str]) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(
            f"out: expected a folder, new or of an earlier run, got {target}, which is not; "
            "choose another path"
        )
    if not target.exists():
        return
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in contents)
    if foreign:
        raise ValueError(
            f"out: expected a new folder or one of an earlier run, got {target}, which also holds "
            f"{', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''}; choose another folder"
        )
