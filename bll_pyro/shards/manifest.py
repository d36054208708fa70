"""The manifest of a store: which shards it has, of what form, and their hashes; and what is said of damage.

Version 1 has the rows in the order of their shards, without ids. Version 2 adds the ids of the rows and ``rows_sha256``, a hash
of the rows that does not depend on the shards (:mod:`bll_pyro.shards.row_hash`). Both are read.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from bll_pyro.shards.place import Place

FORMAT = "bll_pyro.features"  # name of the format
VERSION = 2  # of what is written
VERSIONS = (1, 2)  # of what is read
MANIFEST = "manifest.json"  # file name


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(place: Place, manifest: dict[str, Any]) -> None:
    """Write a manifest with its hash: from then on the folder is a store."""
    manifest["sha256"] = manifest_hash(manifest)
    place.write(MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(place: Place) -> dict[str, Any]:
    """The manifest of a store; ValueError if there is none, or it is altered or of another version."""
    if place.size(MANIFEST) is None:
        raise ValueError(_without_manifest(place))
    try:
        manifest = json.loads(place.read(MANIFEST).decode())
    except ValueError as error:  # truncated JSON, or bytes that are not text
        raise ValueError(
            damage(place, f"a whole {MANIFEST}", f"one that cannot be read ({error})")
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(damage(place, f"a {MANIFEST} of a store of features", "another kind of file"))
    if manifest.get("version") not in VERSIONS:
        raise ValueError(
            f"features at {place}: expected format version {' or '.join(map(str, VERSIONS))}, got {manifest.get('version')}; use "
            "the version of bll_pyro that wrote this store, or extract the features again"
        )
    if manifest.get("sha256") != manifest_hash(manifest):
        raise ValueError(damage(place, f"the {MANIFEST} that was written", "an altered one"))
    files = [shard["file"] for shard in manifest["shards"]]
    if len(set(files)) != len(files):
        raise ValueError(damage(place, "each shard once", "one that is named twice"))
    if sum(shard["num_rows"] for shard in manifest["shards"]) != manifest["num_rows"]:
        raise ValueError(damage(place, f"{manifest['num_rows']} rows in all shards", "another number"))
    return manifest


def damage(place: Place, expected: str, got: str) -> str:
    """The message of a store that is not as it was written."""
    return (
        f"features at {place}: expected {expected}, got {got}; the store is damaged, or this is not a store: delete the "
        "folder and extract the features again, or restore it from a copy"
    )


def _without_manifest(place: Place) -> str:
    names = place.names()
    parts = [name for name in names if name.endswith(".part.json")]
    if parts:
        return (
            f"features at {place}: expected a finished store, got {len(parts)} parts that wait for others; write the rest, then "
            "Features.commit(path)"
        )
    is_there = bool(names) or (place.folder is not None and place.folder.is_dir())
    return damage(place, f"a folder with a {MANIFEST}", "none" if is_there else "no such folder")
