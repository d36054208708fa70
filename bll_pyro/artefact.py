"""A saved fit as one file ``.bll``: a zip archive, not compressed, of what :mod:`bll_pyro.archive` writes into a folder.

The last 64 bytes are the sha256 of all others (:mod:`bll_pyro.runtime.seal`), so that any byte that changed is seen, also one
that is only of the archive. The file is complete before it takes the place of an earlier one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from bll_pyro import archive
from bll_pyro.files import only_writer, scratch_folder, user_path
from bll_pyro.runtime import seal
from bll_pyro.runtime.loading import MANIFEST

SUFFIX = ".bll"
FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # of zip archives: the same fit makes the same file


def save(
    path: str | Path, parts: dict[str, Any], backbone: nn.Module | None, graph: bytes | None = None
) -> None:
    """Write the parts of a fit into one file, where the name ends in ``.bll``, and else into a folder."""
    target = user_path(path)
    if target.suffix != SUFFIX or target.is_dir():
        archive.save_parts(target, parts, backbone, graph)
        return
    if target.exists() and not zipfile.is_zipfile(target):
        raise ValueError(
            f"save: expected a new file or an earlier fit, got {target}, which is something else; choose another path"
        )
    with only_writer(target.parent, f".{target.name}.lock"), scratch_folder(target.parent) as scratch:
        archive.save_parts(scratch / "fit", parts, backbone, graph)
        made = scratch / target.name
        _join(scratch / "fit", made)
        os.replace(made, target)


@contextmanager
def as_folder(path: str | Path) -> Iterator[Path]:
    """The folder of a saved fit: a copy, for the time of the block, where it is one file.

    Raises
    ------
    ValueError
        When the file is cut or altered.
    """
    place = user_path(path)
    if not place.is_file():
        yield place
        return
    with place.open("rb") as file, tempfile.TemporaryDirectory(prefix="bll-") as folder:
        seal.check_end(file, str(place))
        with zipfile.ZipFile(file) as whole:
            for name in whole.namelist():
                with whole.open(name) as member, (Path(folder) / Path(name).name).open("wb") as copy:
                    shutil.copyfileobj(member, copy, seal.BLOCK)
        yield Path(folder)


def _join(folder: Path, made: Path) -> None:
    """Write the files of a folder into one, the manifest first, with the seal at its end."""
    names = sorted((p.name for p in folder.iterdir()), key=lambda name: (name != MANIFEST, name))
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as whole:
        for name in names:
            info = zipfile.ZipInfo(name, FIRST_DATE)
            info.external_attr = 0o644 << 16
            with whole.open(info, "w", force_zip64=True) as member, (folder / name).open("rb") as file:
                shutil.copyfileobj(file, member, seal.BLOCK)
        whole.comment = seal.BLANK.encode()
    with made.open("r+b") as file:
        digest = seal.hash_before_end(file)
        file.seek(-seal.LENGTH, os.SEEK_END)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
