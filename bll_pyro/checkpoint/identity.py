"""What fit a folder belongs to, and in what another call differs from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bll_pyro.files import scratch_folder

FORMAT, VERSION = "bll_pyro.checkpoint", 1
RECORD = "checkpoint.json"  # file name
SHORT = 40  # characters of a value that is shown

Identity = dict[str, Any]  # nested dictionaries and lists of numbers and strings


def write_identity(folder: Path, identity: Identity) -> None:
    """Write the record of a folder."""
    body = {"format": FORMAT, "version": VERSION, "identity": identity, "sha256": key_of(identity)}
    with scratch_folder(folder) as scratch:
        with (scratch / RECORD).open("w", encoding="utf-8") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch / RECORD, folder / RECORD)


def read_identity(folder: Path) -> Identity | None:
    """The record of a folder; None where there is none, and a ValueError if it is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        whole = body["format"] == FORMAT and body["sha256"] == key_of(body["identity"])
    except (ValueError, KeyError, TypeError):  # cut, or not ours
        whole = False
    if not whole:
        raise ValueError(
            f"checkpoint: expected the {RECORD} that was written, got a cut or altered one in {folder}; delete the folder to begin "
            "anew, or restore it from a copy"
        )
    if body["version"] != VERSION:
        raise ValueError(
            f"checkpoint: expected format version {VERSION}, got {body['version']} in {folder}; go on with the version of "
            "bll_pyro that wrote it, or choose another folder"
        )
    found: Identity = body["identity"]
    return found


def key_of(identity: Identity) -> str:
    """SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def what_differs(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """In what two identities differ, by name."""
    if isinstance(there, dict) and isinstance(here, dict) and there.get("class") == here.get("class"):
        for key in dict.fromkeys((*there, *here)):
            inner = f"{name}.{key}" if name else key
            yield from what_differs(there.get(key), here.get(key), inner)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, pair in enumerate(zip(there, here, strict=True)):
            yield from what_differs(*pair, f"{name}[{index}]")
    elif there != here:
        shown = shortened(there), shortened(here)
        yield name if None in shown else f"{name} ({shown[0]} there, {shown[1]} now)"


def shortened(value: Any) -> str | None:
    """A value as it is shown; None for a hash, which says nothing."""
    if isinstance(value, dict):
        value = value.get("class", "other data")
    if isinstance(value, str):
        return None if len(value) == 64 else value[:SHORT]
    return repr(value)[:SHORT]
