"""Folders of images: the class of an image is the folder that it lies in."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bll_pyro.checks import count, switch
from bll_pyro.cli.data.base import DataSource, Opened, Rows
from bll_pyro.cli.data.image_files import ImageFiles, look_at
from bll_pyro.cli.usage import UsageError
from bll_pyro.files import user_path

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# folders that are parts of the rows, by the names that people give them
PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "test": "test",
}
MOST_LISTED = 10  # files in a message


@dataclass(frozen=True, eq=False)
class ImageFolder(DataSource):
    """Images in folders: ``PATH/CLASS/*.png``, or ``PATH/train/CLASS/*.png`` beside ``PATH/test/...``; images without a class
    folder have no targets.

    All images are read once when they are opened, so that one that is cut or no image is told before any work. A backbone
    that knows how its images are prepared (those of timm do) prepares them; else they are numbers from 0 to 1, ``[C, H, W]``.

    Parameters
    ----------
    path
        The folder.
    size
        Height and width to which images are resized first; None leaves them as they are.
    skip_bad
        Leave out files that cannot be read, instead of refusing the folder.
    """

    path: str
    size: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            count(self.size, "size", "ImageFolder")
        switch(self.skip_bad, "skip_bad", "ImageFolder")

    def open(self) -> Opened:
        """Inputs are :class:`ImageFiles`; a row is called by its path in the folder."""
        folder = user_path(self.path)
        found = _files(folder)
        looked = look_at([file for file, _, _ in found], folder.name)
        bad = [(file, why) for (file, _, _), why in zip(found, looked) if isinstance(why, str)]
        if bad and not self.skip_bad:
            raise UsageError(
                f"{folder}: expected images, got {len(bad):,} of {len(found):,} files that cannot be read:\n"
                f"{_listed(bad, folder)}\nrepair or remove them, or leave them out by --skip-bad"
            )
        if bad:
            warnings.warn(f"{folder}: {len(bad):,} files are left out:\n{_listed(bad, folder)}", stacklevel=2)
        kept = [(*entry, seen) for entry, seen in zip(found, looked) if not isinstance(seen, str)]
        if not kept:
            raise UsageError(f"{folder}: expected images, got none that can be read of {len(found):,} files")
        names = sorted({label for _, label, _, _ in kept if label is not None})
        parts = {part for _, _, part, _ in kept if part is not None}
        row_ids = [file.relative_to(folder).as_posix() for file, _, _, _ in kept]
        content = hashlib.sha256(
            "\n".join(f"{row} {seen.digest}" for row, (*_, seen) in zip(row_ids, kept)).encode()
        )
        return Opened(
            ImageFiles(
                tuple(file for file, _, _, _ in kept), tuple(seen.size for *_, seen in kept), self.size
            ),
            np.asarray([names.index(str(label)) for _, label, _, _ in kept]) if names else None,
            row_ids,
            classes=tuple(names) or None,
            given_parts={part: _where([p == part for _, _, p, _ in kept]) for part in parts} or None,
            fingerprint=content.hexdigest,
        )


def _files(folder: Path) -> list[tuple[Path, str | None, str | None]]:
    """Images with class and part (None without), sorted by part and class."""
    if not folder.exists():
        raise UsageError(f"expected a folder of images, got {folder}, which does not exist")
    if not folder.is_dir():
        raise UsageError(f"expected a folder of images, got the file {folder}")
    inside = _folders(folder)
    if "train" in {PARTS.get(one.name.lower()) for one in inside} and all(
        one.name.lower() in PARTS for one in inside
    ):
        return [
            (file, label, PARTS[one.name.lower()]) for one in inside for file, label in _of_classes(one, one)
        ]
    return [(file, label, None) for file, label in _of_classes(folder, folder)]


def _of_classes(folder: Path, shown: Path) -> Iterator[tuple[Path, str | None]]:
    loose = [file for file in sorted(folder.iterdir()) if _is_image(file)]
    inside = _folders(folder)
    if loose and inside:
        raise UsageError(
            f"{shown}: expected either images or one folder for each class, got {len(loose):,} images, such as {loose[0].name}, "
            f"beside the folders {', '.join(one.name for one in inside[:5])}; move them"
        )
    yield from ((file, None) for file in loose)
    empty = []
    for one in inside:
        files = [file for file in sorted(one.rglob("*")) if _is_image(file)]
        empty += [] if files else [one.name]
        yield from ((file, one.name) for file in files)
    if not loose and len(empty) == len(inside):
        raise UsageError(
            f"{shown}: expected images ({', '.join(suffix[1:] for suffix in SUFFIXES)}), or a folder of them for each class, "
            "got none"
        )
    if empty:
        raise UsageError(
            f"{shown}: expected images in the folder of each class, got none in {', '.join(empty)}; remove what is no class"
        )


def _folders(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _listed(bad: Sequence[tuple[Path, str]], folder: Path) -> str:
    shown = [f"  {file.relative_to(folder)}: {why}" for file, why in bad[:MOST_LISTED]]
    more = [f"  and {len(bad) - MOST_LISTED:,} more"] if len(bad) > MOST_LISTED else []
    return "\n".join(shown + more)


def _where(mask: Sequence[bool]) -> Rows:
    return np.flatnonzero(np.asarray(mask))
