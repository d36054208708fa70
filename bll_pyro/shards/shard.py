"""A shard: one safetensors file of rows, written whole, and read by mapping it into memory or by reads of the rows asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bll_pyro import tensorfile
from bll_pyro.shards.manifest import damage
from bll_pyro.shards.place import Place

HEADER_BYTES = 2**16  # read at once, in which most headers end
MOST_HEADER_BYTES = 2**26  # more is no header
GAP_BYTES = 2**16  # rows that are nearer to each other than this are read at once
PIECE_BYTES = 2**25  # most bytes of rows that are read at once for a few of them
HASH_BYTES = 2**24
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_shard(place: Place, name: str, tensors: dict[str, Tensor]) -> tuple[int, str]:
    """Write tensors to a file, which is there when it is whole; return its bytes and its SHA-256.

    OSError if it cannot be written, as on a full disk; what was there before is then untouched.
    """
    with place.writing(name) as path:
        digest = tensorfile.write_tensors(path, {key: value.contiguous() for key, value in tensors.items()})
        return path.stat().st_size, digest


def file_hash(place: Place, name: str) -> str:
    """SHA-256 of a file, read in blocks."""
    size, digest, start = place.size(name) or 0, hashlib.sha256(), 0
    buffer = bytearray(min(HASH_BYTES, size))
    while start < size and (done := place.read_into(name, start, memoryview(buffer)[: size - start])):
        digest.update(memoryview(buffer)[:done])
        start += done
    return digest.hexdigest()


class FileRows:
    """The rows of one tensor in a file, read when they are asked for; indexed like a tensor, by slices and row numbers."""

    device = torch.device("cpu")

    def __init__(
        self, place: Place, name: str, start: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._place, self._name, self._start = place, name, start
        self.shape, self.dtype = shape, dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self.index_select(0, torch.arange(start, stop, step))
        made = torch.empty((max(stop - start, 0), *self.shape[1:]), dtype=self.dtype)
        self.read_into(start, made)
        return made

    def read_into(self, first: int, rows: Tensor) -> None:
        """Fill ``rows [n, ...]``, contiguous, with those from a number on."""
        buffer = memoryview(rows.view(-1).view(torch.uint8).numpy())
        done = self._place.read_into(self._name, self._start + first * self._row_bytes, buffer)
        if done != len(buffer):
            raise ValueError(
                damage(self._place, f"{len(buffer)} bytes of rows in shard {self._name}", str(done))
            )

    def between(self, start: int, stop: int) -> FileRows:
        """The rows from one number to another, without reading them."""
        first = self._start + start * self._row_bytes
        return FileRows(self._place, self._name, first, (stop - start, *self.shape[1:]), self.dtype)

    def index_select(self, _: int, index: Tensor) -> Tensor:
        """Rows by number; those that lie near each other are read at once."""
        made = torch.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        if not len(index):
            return made
        rows, order = index.sort()
        near = max(GAP_BYTES // max(self._row_bytes, 1), 1)
        most = max(PIECE_BYTES // max(self._row_bytes, 1), 1)
        begin, numbers = 0, rows.tolist()
        for k in range(1, len(numbers) + 1):
            ends = k == len(numbers) or numbers[k] - numbers[k - 1] > near
            if ends or numbers[k] - numbers[begin] >= most:
                piece = self[numbers[begin] : numbers[k - 1] + 1]
                made[order[begin:k]] = piece.index_select(0, rows[begin:k] - numbers[begin])
                begin = k
        return made


def read_header(place: Place, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Type, shape and place of each tensor in a file; ValueError where this is no safetensors file."""
    first = place.read(name, 0, HEADER_BYTES)
    length = int.from_bytes(first[:8], "little")
    size = place.size(name) or 0
    if len(first) < 8 or length > min(MOST_HEADER_BYTES, size):
        raise ValueError(damage(place, f"a readable shard {name}", "a header that does not fit in the file"))
    text = first[8 : 8 + length] if 8 + length <= len(first) else place.read(name, 8, 8 + length)
    try:
        entries: Mapping[str, Any] = json.loads(text)
        found = {
            key: (
                DTYPES[entry["dtype"]],
                tuple(map(int, entry["shape"])),
                8 + length + int(entry["data_offsets"][0]),
            )
            for key, entry in entries.items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            damage(place, f"a readable shard {name}", f"a header that is none ({error})")
        ) from error
    ends = [start + math.prod(shape) * dtype.itemsize for dtype, shape, start in found.values()]
    if max(ends, default=0) > size:
        raise ValueError(damage(place, f"a whole shard {name}", "rows that end beyond the file"))
    return found


def mapped(place: Place, name: str) -> dict[str, Tensor]:
    """The tensors of a file of this machine, mapped into memory: read when they are used, and kept by the system as it can."""
    from safetensors import SafetensorError, safe_open

    assert place.folder is not None
    try:
        with safe_open(os.fspath(place.folder / name), framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(damage(place, f"a readable shard {name}", str(error))) from error


def read_rows(place: Place, name: str) -> dict[str, FileRows]:
    """The tensors of a file, read when they are asked for."""
    return {
        key: FileRows(place, name, start, shape, dtype)
        for key, (dtype, shape, start) in read_header(place, name).items()
    }
