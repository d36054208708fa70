"""A folder of results that exists only when complete: it is written under another name and renamed at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bll_pyro.files import LOCK, only_writer, user_path


@contextmanager
def replaced_when_complete(target: Path, contents: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder, which replaces `target` if the block ends without an error.

    Parameters
    ----------
    target
        Path of the results. An earlier folder is kept until the new one is complete.
    contents
        Names of the entries of a folder of results. An earlier folder with other entries is not replaced.

    Raises
    ------
    ValueError
        Before any work, if `target` is not a folder or has other entries, which the replacement would delete.
    """
    target = user_path(target)  # absolute, because the current folder may change in the block
    _check_replaceable(target, contents)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    fresh, earlier = beside / "new", beside / "earlier"
    try:
        fresh.mkdir()
        yield fresh
        with only_writer(target.parent, f".{target.name}{LOCK}"):
            _check_replaceable(target, contents)  # again, because it may have changed in the block
            if target.exists():
                target.rename(earlier)
            fresh.rename(target)
    finally:
        if earlier.exists() and not target.exists():  # interrupted between the two renames
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
