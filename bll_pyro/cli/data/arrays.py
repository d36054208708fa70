"""Files of arrays: ``.npy``, ``.npz`` and ``.safetensors``."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from bll_pyro.cli.data.base import DataSource, Opened
from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.files import user_path
from bll_pyro.tensorfile import sha256

SUFFIXES = (".npy", ".npz", ".safetensors")
# what people call them, in the order in which they are looked for
INPUTS = ("inputs", "features", "x", "X", "x_train", "data", "images", "arr_0")
TARGETS = ("targets", "labels", "y", "Y", "y_train", "target", "label", "arr_1")


@dataclass(frozen=True, eq=False)
class Arrays(DataSource):
    """Arrays with one entry for each row. Those of ``.npy`` and ``.safetensors`` stay on disk until they are used.

    Parameters
    ----------
    path
        The file.
    inputs, targets
        Names of the arrays in it; None looks for usual ones: ``inputs``, ``features``, ``x``; ``targets``, ``labels``, ``y``.
        Of a ``.npy``, which holds one array, ``targets`` is the path of another.
    """

    path: str
    inputs: str | None = None
    targets: str | None = None

    def open(self) -> Opened:
        """A row is called by its number."""
        path = user_path(self.path)
        arrays = _read(path)
        if path.suffix.lower() == ".npy":
            given = None if self.targets is None else _read(user_path(self.targets))["array"]()
            inputs = arrays["array"]()
        else:
            name = _chosen(arrays, self.inputs, INPUTS, "inputs", path)
            beside = {key: made for key, made in arrays.items() if key != name}
            label = self.targets or next((key for key in TARGETS if key in beside), None)
            inputs = arrays[name]()
            given = None if label is None else arrays[_chosen(arrays, label, TARGETS, "targets", path)]()
        if not np.ndim(inputs):
            raise UsageError(f"{path}: expected an array with one entry for each row, got a single number")
        if given is not None and (not np.ndim(given) or len(given) != len(inputs)):
            raise UsageError(
                f"{path}: expected one target for each of {len(inputs):,} rows, got targets of shape {list(np.shape(given))}"
            )
        targets, classes = class_numbers(given)
        return Opened(inputs, targets, range(len(inputs)), classes=classes, fingerprint=partial(sha256, path))


def class_numbers(given: Any) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Targets as numbers; those that are texts or truth values as numbers of classes, with the names of the classes."""
    if given is None:
        return None, None
    array = np.asarray(given)
    if array.dtype.kind not in "OUSb":
        return array, None
    names, numbers = np.unique(array.astype(str), return_inverse=True)
    return numbers.reshape(array.shape), tuple(map(str, names))


def _chosen(
    arrays: Mapping[str, Any], given: str | None, usual: tuple[str, ...], what: str, path: Path
) -> str:
    """The name of an array in a file."""
    if given is not None:
        if given not in arrays:
            raise UsageError(
                f"{path}: expected an array {given!r} for {what}, got none; {nearest(given, arrays)}"
            )
        return given
    found = [name for name in usual if name in arrays]
    if not found and len(arrays) == 1:
        found = list(arrays)
    if not found:
        raise UsageError(
            f"{path}: expected an array of {what} with a usual name ({', '.join(usual[:3])}), got {', '.join(arrays) or 'none'}; "
            f"name it by data.{what}"
        )
    return found[0]


def _read(path: Path) -> dict[str, Callable[[], Any]]:
    """Functions that give the arrays of a file, by name."""
    if not path.is_file():
        raise UsageError(
            f"expected a file of arrays, got {path}, which {'is a folder' if path.exists() else 'does not exist'}"
        )
    try:
        match path.suffix.lower():
            case ".npy":
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                return {"array": lambda: array}
            case ".npz":
                if not zipfile.is_zipfile(path):  # NumPy would leave the file open
                    raise ValueError("it is no archive of arrays, or was cut")
                held = np.load(path, allow_pickle=False)
                return {name: partial(_of_archive, held, name, path) for name in held.files}
            case ".safetensors":
                file: Any = safe_open(path, framework="pt")
                return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise _damaged(path, error) from error
    raise UsageError(f"expected a file {', '.join(SUFFIXES)}, got {path}")


def _of_archive(held: Any, name: str, path: Path) -> np.ndarray:
    try:
        found: np.ndarray = held[name]
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"expected a whole file of numbers, got {path}, which cannot be read: {error}")
