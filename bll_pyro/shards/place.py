"""Places of files: a folder of this machine, or one of a file system that fsspec knows by its URL.

A file appears under its name when it is whole. On this machine it is written under another name, flushed and renamed. A file
system behind a URL writes objects whole or not at all where it is an object store; elsewhere what was cut is found by its size
or by its hash, which the manifest has.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bll_pyro.files import SCRATCH, user_path

LOCAL = ("file://", "local://")  # URLs of folders of this machine


class Place(ABC):
    """A folder of files, without folders in it. It can be sent to another process."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """The folder of this machine; None behind a URL."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of its files, in order; none where there is no such folder."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def read_into(self, name: str, start: int, buffer: memoryview) -> int:
        """Fill a buffer of bytes from a place in a file on; return how many bytes there were."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a file, all or those between two places; OSError where it cannot be read."""
        if stop is None:
            stop = self.size(name)
            if stop is None:
                raise FileNotFoundError(f"{self}/{name}")
        buffer = bytearray(max(stop - start, 0))
        return bytes(buffer[: self.read_into(name, start, memoryview(buffer))])

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one of the same name; OSError where it cannot be written."""
        with self.writing(name) as path:
            path.write_bytes(content)

    @abstractmethod
    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path of this machine to write to; the file is in its place when the block has ended well."""
        yield Path()

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""


class LocalFolder(Place):
    """A folder of this machine."""

    def __init__(self, path: str | Path) -> None:
        self._folder = user_path(path)

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def folder(self) -> Path:
        return self._folder

    def names(self) -> list[str]:
        return sorted(os.listdir(self._folder)) if self._folder.is_dir() else []

    def size(self, name: str) -> int | None:
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None

    def read_into(self, name: str, start: int, buffer: memoryview) -> int:
        done = 0
        with open(self._folder / name, "rb", buffering=0) as file:
            file.seek(start)
            while done < len(buffer) and (step := file.readinto(buffer[done:])):
                done += step
        return done

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f".{name}{SCRATCH}{uuid.uuid4().hex}"
        try:
            yield scratch
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(scratch, self._folder / name)
        finally:
            with suppress(OSError):
                scratch.unlink()

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


class UrlFolder(Place):
    """A folder behind a URL such as ``s3://bucket/folder``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._files, self._root = _file_system(self._url)

    def __str__(self) -> str:
        return self._url

    def __reduce__(self) -> tuple[type[UrlFolder], tuple[str]]:
        return type(self), (self._url,)

    @property
    def folder(self) -> None:
        return None

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def size(self, name: str) -> int | None:
        try:
            return int(self._files.size(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def read_into(self, name: str, start: int, buffer: memoryview) -> int:
        if not len(buffer):
            return 0
        content = self._files.cat_file(f"{self._root}/{name}", start=start, end=start + len(buffer))
        buffer[: len(content)] = content
        return len(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            yield path
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")


def place_of(where: str | Path | Place) -> Place:
    """The place that a path or a URL names.

    Raises
    ------
    ModuleNotFoundError
        For a URL without the package fsspec, or the one that it needs for this kind of URL.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    for prefix in LOCAL:
        if text.startswith(prefix):
            return LocalFolder(text.removeprefix(prefix))
    # a Path makes one slash of two, so that only a text can be a URL
    return UrlFolder(text) if isinstance(where, str) and "://" in text else LocalFolder(where)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{url}: expected fsspec and its package for this kind of URL, got: {error}; pip install fsspec, and for "
            "s3:// s3fs, for gs:// gcsfs, for az:// adlfs"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{url}: expected a URL that fsspec knows, got: {error}; check how it begins"
        ) from error
    return files, str(root).rstrip("/")
