"""One file of a checkpoint: tensors as safetensors, everything else as JSON in its header, whole or not there.

A file is written beside its place and moved there, so that a kill or a full disk leaves the earlier one as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro import tensorfile
from bll_pyro.files import scratch_folder


def write_part(path: Path, content: Any, notes: dict[str, str]) -> None:
    """Write nested dictionaries, lists and tuples of tensors, arrays, numbers and strings; OSError if the disk is full."""
    tensors: dict[str, Tensor] = {}
    body = json.dumps(to_json(content, tensors, {}, path.stem))
    here = separate({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    notes = {**notes, "content": body, "sha256": digest_of(body, here)}
    with scratch_folder(path.parent) as scratch:
        tensorfile.write_tensors(scratch / path.name, here, notes)
        os.replace(scratch / path.name, path)


def read_part(path: Path) -> tuple[Any, dict[str, str]]:
    """Content and notes of a file; ValueError if it is cut or altered."""
    tensors, notes = tensorfile.read_tensors(path)
    body = notes.get("content", "null")
    if notes.get("sha256") != digest_of(body, tensors):
        raise ValueError(f"expected {path} as it was written, got other contents")
    return from_json(json.loads(body), tensors), notes


def to_json(value: Any, tensors: dict[str, Tensor], names: dict[int, str], path: str) -> Any:
    """Plain data of a value; its tensors go into ``tensors``, one that occurs several times once."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        name = names.setdefault(id(value), path)
        tensors.setdefault(name, value)
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, to_json(part, tensors, names, f"{path}.{key}")] for key, part in value.items()]
        if all(type(key) in (str, int) for key in value):
            return {"dict": pairs}
    elif isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [to_json(part, tensors, names, f"{path}.{i}") for i, part in enumerate(value)]}
    elif value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"checkpoint: expected a state of tensors, numbers, strings, lists and dictionaries, got {type(value).__name__} in {path}; "
        "leave checkpoint out for this fit"
    )


def from_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of :func:`to_json`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: from_json(part, tensors) for key, part in content}
        case "list":
            return [from_json(part, tensors) for part in content]
        case "tuple":
            return tuple(from_json(part, tensors) for part in content)
    raise ValueError(f"expected a part of a checkpoint, got {kind!r}")


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where two share their memory, which the format does not allow."""
    seen, found = set[int](), dict[str, Tensor]()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    return found


def digest_of(body: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of plain data and tensors on the CPU."""
    digest = hashlib.sha256(body.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
