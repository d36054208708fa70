"""Save and load a fit: safetensors and a JSON manifest, no pickle, no training rows.

The manifest names every file by its hash and is replaced in one step, after the files that it names are on disk. So an
interrupted save leaves the earlier model whole, and a reader finds either the old or the new one. One thread or process
writes at a time; readers do not wait. On reading, the size and hash of every file are checked.

============================== ==================================================================
file                           what is in it
============================== ==================================================================
manifest.json                  declaration, inference, seed, shapes, versions, hash of every file
posterior-HASH.safetensors     tensors of posterior, frame, trace and declarations
backbone-HASH.safetensors      weights and buffers of the backbone, where there is one
============================== ==================================================================
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bll_pyro import tensorfile
from bll_pyro.features.backbones import Backbone, rebuilt
from bll_pyro.features.state import fill, stored_state, unwrapped
from bll_pyro.files import SCRATCH, only_writer, scratch_folder, user_path
from bll_pyro.packing import pack, torch_tensor, unpack
from bll_pyro.runtime import seal
from bll_pyro.runtime.loading import GRAPH, MANIFEST

FORMAT, VERSION = "bll_pyro.fit", 1
NUM_READS = 100  # how often a reader begins anew where writers keep replacing the fit


def save_parts(
    path: str | Path, parts: dict[str, Any], backbone: nn.Module | None, graph: bytes | None = None
) -> None:
    """Write the parts of a fit into the folder ``path``, in place of an earlier fit there.

    Raises ValueError, and changes nothing, if the folder holds something else than a saved fit, or the backbone has state
    that cannot be stored.
    """
    folder = user_path(path)
    tensors: dict[str, Tensor] = {}
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {name: version(name) for name in ("bll-pyro", "torch", "pyro-ppl")},
        "fit": {name: pack(value, tensors, name) for name, value in parts.items()},
        "backbone": None,
    }
    files = {"posterior": tensors}
    if backbone is not None:
        plain = unwrapped(backbone)
        body["backbone"] = plain.config if isinstance(plain, Backbone) else type(plain).__name__
        files["backbone"], extra = stored_state(backbone)
        if extra:
            body["extra_state"] = pack(extra, tensors, "extra_state")
    _earlier_files(folder)  # before anything is made
    with only_writer(folder):
        _write(folder, body, files, graph)


def load_parts(
    path: str | Path, *, backbone: nn.Module | None = None, head_only: bool = False
) -> dict[str, Any]:
    """Read the parts that :func:`save_parts` wrote; see :func:`bll_pyro.load`."""
    folder = user_path(path)
    body, tensors, weights = _read_files(folder, head_only)
    parts = {name: unpack(value, tensors) for name, value in body["fit"].items()}
    if weights is not None:
        made = _rebuild(body["backbone"], backbone, folder)
        fill(made, weights, unpack(body.get("extra_state", {"dictionary": {}}), tensors))
        parts["backbone"] = made.eval()
    elif body["backbone"] is not None:
        parts.pop("feature_names", None)  # which are of the inputs of the backbone that is left out
    return parts


def _rebuild(saved: Any, given: nn.Module | None, folder: Path) -> nn.Module:
    if given is not None:
        return given
    if isinstance(saved, dict):
        return rebuilt(saved)
    raise ValueError(
        f"load: expected backbone=..., since {folder} was saved with a {saved}, whose code is not stored; pass a module "
        "of the same architecture (its weights are in the folder), or head_only=True to work on features"
    )


def _write(
    folder: Path, body: dict[str, Any], files: dict[str, dict[str, Tensor]], graph: bytes | None
) -> None:
    """Write complete files beside their place, move them there, the manifest last, and delete those of the earlier fit."""
    ours = _earlier_files(folder)
    for left in folder.glob(f"{SCRATCH}*"):  # of a writer that was killed
        _delete(folder, _named_files(left / MANIFEST))
        shutil.rmtree(left, ignore_errors=True)
    try:
        with scratch_folder(folder) as scratch:
            body["files"] = {name: _write_tensors(scratch, name, content) for name, content in files.items()}
            if graph is not None:
                (scratch / GRAPH).write_bytes(graph)
                digest = tensorfile.sha256(scratch / GRAPH)
                body["files"][GRAPH] = _named(scratch / GRAPH, digest, ".onnx")
            body["sha256"] = seal.body_hash(body)
            with (scratch / MANIFEST).open("wb") as file:
                file.write(json.dumps(body, indent=1).encode())
                file.flush()
                os.fsync(file.fileno())
            new = _named_files(scratch / MANIFEST)
            ours |= new
            for name in (*new, MANIFEST):
                os.replace(scratch / name, folder / name)
    finally:
        _delete(folder, ours)


def _delete(folder: Path, names: set[str]) -> None:
    """Delete these files unless the manifest names them."""
    for name in names - _named_files(folder / MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _earlier_files(folder: Path) -> set[str]:
    """Files of the fit that is there now; an error if the folder holds anything else.

    Another writer may be at work. A file comes to its place while the manifest that names it is in a scratch folder, and the
    manifest follows last: so files are listed first, and manifests read in the order in which one moves.
    """
    try:
        present = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    except FileNotFoundError:  # also where a writer that failed has just removed it
        return set()
    except NotADirectoryError:  # the folder, or one that should hold it, is a file: only_writer names it
        return set()
    unfinished = set()  # of a first save that goes on, or was killed
    for left in folder.glob(f"{SCRATCH}*"):
        unfinished |= _named_files(left / MANIFEST)
    finished = _named_files(folder / MANIFEST)
    if (folder / MANIFEST).exists():
        return finished
    if present - unfinished:
        raise ValueError(
            f"save: expected an empty folder or an earlier fit, got {folder} with other files in it; choose another path"
        )
    return unfinished


def _named_files(manifest: Path) -> set[str]:
    """Files that a manifest names: none where it is missing or damaged, and an error if it is not one of a fit."""
    try:
        body = json.loads(manifest.read_text())
        if body.get("format") == FORMAT:
            return {Path(entry["file"]).name for entry in body["files"].values()}
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError):
        return set()  # a damaged fit is replaced
    raise ValueError(
        f"save: expected an empty folder or an earlier fit, got {manifest.parent} with another manifest; choose another path"
    )


def _write_tensors(scratch: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    written = scratch / name
    digest = tensorfile.write_tensors(written, {key: torch_tensor(value) for key, value in tensors.items()})
    return _named(written, digest, ".safetensors")


def _named(written: Path, digest: str, suffix: str) -> dict[str, Any]:
    final = written.rename(written.with_name(f"{written.name}-{digest[:16]}{suffix}"))
    return {"file": final.name, "bytes": final.stat().st_size, "sha256": digest}


def _read_files(
    folder: Path, head_only: bool
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor] | None]:
    """The manifest, the tensors that it names, and the weights of a backbone.

    A writer may replace the fit in the meantime and delete its files: then the new manifest is read.
    """
    for _ in range(NUM_READS):
        body = _read_manifest(folder)
        wanted = ["posterior"] if body["backbone"] is None or head_only else ["posterior", "backbone"]
        try:
            found = [load_file(_checked(folder, body["files"][name])) for name in wanted]
            return body, found[0], found[1] if len(found) > 1 else None
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            failure = error
            if _read_manifest(folder) == body:
                break
    raise failure


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = "save the fit again, or restore the folder from a copy"
    if not path.is_file():
        raise ValueError(f"load: expected a saved fit in {folder}, got no {MANIFEST} there; {remedy}")
    try:
        body = json.loads(text := path.read_text())
        complete = isinstance(body, dict) and body.get("format") == FORMAT and "files" in body
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"load: expected JSON in {path}, got a cut or altered file ({error}); {remedy}"
        ) from error
    if not complete:
        raise ValueError(f"load: expected the manifest of a fit in {path}, got something else; {remedy}")
    if body.get("version", 0) > VERSION:
        raise ValueError(
            f"load: expected format version <= {VERSION}, got {body['version']}; update bll_pyro to read this fit"
        )
    if not seal.is_written(text, body):
        raise ValueError(f"load: expected the manifest as it was written, got an altered {path}; {remedy}")
    return body


def _checked(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / entry["file"]
    remedy = "save the fit again, or restore the folder from a copy"
    if not path.is_file():
        raise ValueError(f"load: expected the file {entry['file']} in {folder}, got none; {remedy}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(
            f"load: expected {entry['bytes']} bytes in {path}, got {size}: the file was cut or altered; {remedy}"
        )
    if tensorfile.sha256(path) != entry["sha256"]:
        raise ValueError(
            f"load: expected {path} as it was written, got other contents (sha256 differs); {remedy}"
        )
    return path
