"""Tensor files: safetensors, flushed to disk, with the permissions of any new file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> str:
    """Write contiguous CPU tensors and notes to the file ``path``, flush it to disk, and return its SHA-256.

    safetensors makes its files private to their owner. A service that runs as another user must be able to read a model,
    so the file gets the permissions that the umask gives to any new file. OSError if it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    permissions = path.stat().st_mode
    try:
        save_file(tensors, path, notes)
    except SafetensorError as error:
        size = sum(value.nbytes for value in tensors.values())
        raise OSError(
            f"expected room for {size:,} bytes in {path.parent}, got an error of the system: {error}; make room, or save elsewhere"
        ) from error
    path.chmod(permissions)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a file; ValueError if it is missing or truncated."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"expected a complete file {path}, got a missing or truncated one ({error}); save it again, or restore a copy"
        ) from error


def sha256(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
