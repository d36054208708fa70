"""The folder of a run: whole under its name, or not there. While the work goes on it has a hidden name beside it.

=================== ===============================================================================
entry               what is in it
=================== ===============================================================================
experiment.yaml     the experiment with all that the command line and the data say
code/               modules of the user's that the YAML names, as they were
splits.csv          number and name of the rows of each part
data.json           how the data were read: columns, categories, classes, a hash of the contents
run.json            versions, times, state
log.txt             what was said, with times
metrics.json        figures
model/              the fit, for ``bll.load``
posterior.nc        draws and densities for ArviZ
checkpoint/         state of the fit; only while the work goes on
features/           features of the backbone; only while the work goes on
=================== ===============================================================================

An interrupted run of the same experiment goes on where it was. A run is never replaced unless that is asked for.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bll_pyro.cli.data.base import Rows
from bll_pyro.cli.usage import UsageError
from bll_pyro.files import LOCK, only_writer, user_path

EXPERIMENT, RECORD, METRICS, LOG, SPLITS = (
    "experiment.yaml",
    "run.json",
    "metrics.json",
    "log.txt",
    "splits.csv",
)
MODEL, TREE, CODE, CHECKPOINT, FEATURES = "model", "posterior.nc", "code", "checkpoint", "features"
PACKAGES = ("bll-pyro", "torch", "pyro-ppl", "timm", "transformers", "numpy", "scikit-learn", "arviz")
FORMAT, VERSION = "bll_pyro.run", 1


@contextmanager
def unfinished(path: Path, experiment: str, overwrite: bool) -> Iterator[Path]:
    """The folder to work in, which becomes ``path`` when the block ends well; one that was interrupted is kept.

    Parameters
    ----------
    path
        The final name.
    experiment
        The experiment as YAML: an interrupted run goes on if it is of the same.
    overwrite
        Replace a run of this name at the end, and discard an interrupted one of another experiment.

    Raises
    ------
    UsageError
        Before any work, if something is there that would be lost.
    """
    path = user_path(path)
    check_free(path, overwrite)
    work = path.parent / f".{path.name}.unfinished"
    with only_writer(work, patience=0):
        _begin(work, experiment, overwrite)
        try:
            yield work
        except (KeyboardInterrupt, OSError):  # kept: the same command goes on
            raise
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    for name in (CHECKPOINT, FEATURES):
        shutil.rmtree(work / name, ignore_errors=True)
    _put_in_place(work, path, overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """Raise a UsageError if a run cannot be written to a path."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink() or (any(path.iterdir()) and not (path / RECORD).is_file()):
        raise UsageError(
            f"expected a new folder or that of a run, got {path}, which is something else; choose another by -o"
        )
    if any(path.iterdir()) and not overwrite:
        raise UsageError(
            f"expected a new folder, got {path}, in which there is a run; choose another by -o, or give --overwrite"
        )


def _begin(work: Path, experiment: str, overwrite: bool) -> None:
    """Make the folder, or take that of an interrupted run of the same experiment."""
    file = work / EXPERIMENT
    if file.is_file() and file.read_text(encoding="utf-8") == experiment:
        return
    others = [entry for entry in work.iterdir() if entry.name != LOCK]
    if file.is_file() and not overwrite:
        raise UsageError(
            f"expected the experiment of the interrupted run in {work}, got another one; run that one again to go on, or give "
            "--overwrite to discard it"
        )
    for entry in others:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    file.write_text(experiment, encoding="utf-8")


def _put_in_place(work: Path, path: Path, overwrite: bool) -> None:
    with only_writer(path.parent, f".{path.name}{LOCK}"):
        check_free(path, overwrite)  # again, because it may have changed meanwhile
        earlier = path.parent / f".{path.name}.earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        if path.exists():
            path.rename(earlier)
        try:
            work.rename(path)
        except BaseException:
            if earlier.exists():
                earlier.rename(path)
            raise
        shutil.rmtree(earlier, ignore_errors=True)


def write_json(path: Path, body: Any) -> None:
    """Write plain data, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(body, indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_record(work: Path, seconds: float, seed: int) -> None:
    """Write what the run was made with."""
    body = {
        "format": FORMAT,
        "version": VERSION,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        "seed": seed,
        "versions": versions(),
    }
    write_json(work / RECORD, body)


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, as far as they are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_version(folder: Path) -> None:
    """Raise a ValueError if a run was written by a newer version, or its record is damaged."""
    try:
        body = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        is_run, found = body["format"] == FORMAT, int(body["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a whole {RECORD} in {folder}, got one that cannot be read: {error}"
        ) from error
    if not is_run or found > VERSION:
        raise ValueError(
            f"{folder}: expected a run of format version <= {VERSION}, got {found}; update bll_pyro to read it"
        )


def write_parts(work: Path, parts: Mapping[str, Rows], row_ids: Sequence[str | int]) -> None:
    """Store number and name of the rows of each part."""
    with (work / SPLITS).open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["part", "row", "row_id"])
        for name, rows in parts.items():
            lines.writerows((name, row, row_ids[row]) for row in rows.tolist())


def read_parts(folder: Path) -> dict[str, Rows]:
    """The row numbers of the parts of a run."""
    found: dict[str, list[int]] = {}
    with (folder / SPLITS).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["part"], []).append(int(line["row"]))
    return {name: np.asarray(rows) for name, rows in found.items()}


def add_to_log(work: Path, text: str) -> None:
    """Add a message to the log, with the time."""
    with (work / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
