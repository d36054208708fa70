"""Opening the shards of a manifest: their sizes and headers are checked, their rows are not read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bll_pyro.shards.manifest import damage
from bll_pyro.shards.place import Place
from bll_pyro.shards.shard import FileRows, mapped, read_rows

MAPPED, AHEAD = "mmap", "ahead"  # ways to read
type StoredRows = Tensor | FileRows


def way_of_reading(place: Place, read: str | None) -> str:
    """How the rows of a place are read: as asked for, or by where it is; ValueError if that cannot be."""
    read = read or (AHEAD if place.folder is None else MAPPED)
    if read not in (MAPPED, AHEAD) or (read == MAPPED and place.folder is None):
        raise ValueError(
            f"Features.open(read=...): expected {MAPPED!r} or {AHEAD!r}, and {AHEAD!r} for a URL, got {read!r}"
        )
    return read


def open_shard(
    place: Place, shard: dict[str, Any], manifest: dict[str, Any], read: str
) -> tuple[StoredRows, StoredRows | None]:
    """Features and targets of a shard; ValueError if it is missing, cut, or not what the manifest says."""
    name = shard["file"]
    if (size := place.size(name)) is None:
        raise ValueError(damage(place, f"a shard {name}", "no such file"))
    if size != shard["num_bytes"]:
        raise ValueError(damage(place, f"{shard['num_bytes']} bytes in shard {name}", str(size)))
    tensors: Any = mapped(place, name) if read == MAPPED else read_rows(place, name)
    features, targets = tensors.get("features"), tensors.get("targets")
    lacks = features is None or (targets is None) != (manifest["targets"] is None)
    form = None if lacks else (tuple(features.shape), str(features.dtype))
    expected = ((shard["num_rows"], manifest["num_features"]), manifest["dtype"])
    if form != expected:
        raise ValueError(damage(place, f"features of shape and dtype {expected} in shard {name}", str(form)))
    return features, targets
