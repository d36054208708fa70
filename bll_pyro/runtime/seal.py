"""Seals: the sha256 of a whole file inside of it, so that any byte that is not as it was written is seen.

=========== ==================================================================================
file        where the sha256 stands
=========== ==================================================================================
``.onnx``   in its metadata; for the hash its 64 characters count as zeros
``.bll``    the last 64 bytes (the comment of the zip archive); the hash is of all bytes before
=========== ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

LENGTH = 64  # hexadecimal characters of a sha256
BLANK = "0" * LENGTH
KEY = "bll_pyro.sha256"
_MARK = KEY.encode() + b"\x12\x40"  # protobuf: field 2, 64 bytes long
REMEDY = "export or save the model again, or restore the file from a copy"
BLOCK = 2**20


class Altered(ValueError):
    """A file that is not as it was written."""


def sealed_graph(data: bytes) -> bytes:
    """The bytes of an ONNX model whose metadata has ``KEY: BLANK``, with its sha256 in that place."""
    start = _place(data, "the graph")
    if data[start : start + LENGTH] != BLANK.encode():
        raise ValueError("expected a model that is not sealed yet, got one with a sha256")
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + LENGTH :]


def check_graph(data: bytes, name: str) -> None:
    """Raise :class:`Altered` unless an ONNX model is as it was sealed."""
    start = _place(data, name)
    digest = hashlib.sha256(data[:start])
    digest.update(BLANK.encode())
    digest.update(data[start + LENGTH :])
    _compare(digest.hexdigest(), data[start : start + LENGTH], name)


def check_end(file: BinaryIO, name: str) -> None:
    """Raise :class:`Altered` unless the last bytes of a file are the sha256 of all others; the file is read in blocks."""
    found = hash_before_end(file)
    _compare(found, file.read(), name)


def hash_before_end(file: BinaryIO) -> str:
    """sha256 of all bytes but the last ``LENGTH``, where the file then stands."""
    size = file.seek(0, 2) - LENGTH
    file.seek(0)
    digest = hashlib.sha256()
    while (left := size - file.tell()) > 0:
        digest.update(file.read(min(BLOCK, left)))
    return digest.hexdigest()


def check_file(path: Path, sha256: str, num_bytes: int) -> None:
    """Raise :class:`Altered` unless a file has the sha256 and size that another one says."""
    if not path.is_file():
        raise Altered(f"load: expected the file {path.name} in {path.parent}, got none; {REMEDY}")
    if path.stat().st_size != num_bytes:
        raise Altered(
            f"load: expected {num_bytes} bytes in {path}, got {path.stat().st_size}: the file was cut or altered; {REMEDY}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(digest, sha256.encode(), str(path))


def body_hash(body: dict[str, Any]) -> str:
    """sha256 of the content of a manifest, which stands in it."""
    content = {key: value for key, value in body.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_written(text: str, body: dict[str, Any]) -> bool:
    """Whether the text of a manifest is as it was written, to the last blank."""
    return body.get("sha256") == body_hash(body) and text == json.dumps(body, indent=1)


def note(data: bytes, key: str) -> bytes:
    """The text that the metadata of an ONNX model (protobuf) have under a key."""
    mark = b"\n" + bytes([len(key)]) + key.encode() + b"\x12"
    place = data.rindex(mark) + len(mark)
    length = shift = 0
    while True:  # a number in groups of seven bits
        byte = data[place]
        place, length, shift = place + 1, length | (byte & 127) << shift, shift + 7
        if byte < 128:
            return data[place : place + length]


def _place(data: bytes, name: str) -> int:
    """Where the sha256 stands."""
    if data.count(_MARK) != 1:
        raise Altered(f"load: expected a graph that fit.export wrote, got {name} without one {KEY}; {REMEDY}")
    return data.index(_MARK) + len(_MARK)


def _compare(found: str, written: bytes, name: str) -> None:
    if found.encode() != written:
        raise Altered(
            f"load: expected {name} as it was written, got other contents (sha256 differs); {REMEDY}"
        )
