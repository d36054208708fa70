"""A store of features: the output of a backbone, with targets, in memory or memory-mapped from disk.

On disk a store is a folder of safetensors files (shards) and a manifest with the number of rows, the shapes, the
dtype, the key and the SHA-256 of every shard. `bll_pyro.features.writer` writes it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro import tensorfile
from bll_pyro.checks import count
from bll_pyro.features.arrays import to_tensor
from bll_pyro.features.rows import Index, ShardedRows
from bll_pyro.files import user_path

FORMAT = "bll_pyro.features"  # name of the format in a manifest
VERSION = 1  # version of the format in a manifest
MANIFEST = "manifest.json"  # file name of the manifest


class Features:
    """Rows of features ``[N, D]``, with targets or without; immutable.

    Made by :func:`bll_pyro.extract`, :meth:`open` or :meth:`from_tensors`. ``features[index]`` gives rows: one row
    ``[D]`` for a number, n rows ``[n, D]`` for a slice, row numbers or a mask.

    Attributes
    ----------
    num_rows, num_features
        N and D.
    num_shards
        Number of shards; a single one is read without a copy.
    dtype
        The dtype of the features.
    path
        The folder of the store; None in memory.
    key
        SHA-256 of backbone, inputs and dtype; None if it was not computed.
    shuffled
        Whether :func:`bll_pyro.extract` got the rows from a DataLoader that shuffles: other targets cannot be matched to them.
    feature_names
        Names of the features, where they are columns of a data frame; else None.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Tensor, Tensor | None]],
        *,
        path: Path | None = None,
        key: str | None = None,
        hashes: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._features = ShardedRows([features for features, _ in shards])
        targets = [part for _, part in shards if part is not None]
        self._targets = ShardedRows(targets) if targets else None
        self._hashes = tuple(hashes)
        self.path, self.key, self.shuffled = path, key, False
        self.feature_names: tuple[str, ...] | None = None
        self.num_shards = len(shards)
        self.num_rows = self._features.num_rows
        self.num_features = self._features.parts[0].shape[1]
        self.dtype = self._features.parts[0].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and width D."""
        return self.num_rows, self.num_features

    @classmethod
    def from_tensors(cls, features: Any, targets: Any = None, *, key: str | None = None) -> Features:
        """Return a store in memory of arrays `features` ``[N, D]`` and `targets` ``[N]`` or ``[N, T]``, without a copy.

        Raises
        ------
        ValueError
            If the features are not floats of shape ``[N, D]`` with N > 0, or the targets have another number of rows.
        """
        features = to_tensor(features, "features")
        targets = None if targets is None else to_tensor(targets, "targets")
        if features.ndim != 2 or not features.is_floating_point() or len(features) == 0:
            raise ValueError(
                f"features: expected floats of shape [N, D] with N > 0, got {features.dtype} of shape "
                f"{list(features.shape)}; reshape with .flatten(1) or convert with .float()"
            )
        if targets is not None and (targets.ndim == 0 or len(targets) != len(features)):
            raise ValueError(
                f"targets: expected one entry for each of {len(features)} rows of features, got shape "
                f"{list(targets.shape)}; features and targets must come from the same rows"
            )
        return cls([(features, targets)], key=key)

    @classmethod
    def open(cls, path: str | Path) -> Features:
        """Open the store in the folder `path`; rows are read from disk when they are used.

        Sizes and headers of the shards are checked here, their contents by :meth:`verify`.

        Raises
        ------
        ValueError
            If the manifest or a shard is missing, truncated or altered, or they do not match.
        """
        path = user_path(path)
        manifest = _read_manifest(path)
        shards = [_open_shard(path / shard["file"], shard, manifest) for shard in manifest["shards"]]
        hashes = [(shard["file"], shard["sha256"]) for shard in manifest["shards"]]
        opened = cls(shards, path=path, key=manifest["key"], hashes=hashes)
        names = manifest.get("feature_names")  # stores of version 0.1.0 have none
        opened.feature_names = None if names is None else tuple(names)
        return opened

    @cached_property
    def targets(self) -> Shaped[Tensor, "N *T"] | None:
        """All targets ``[N]`` or ``[N, T]``, or None."""
        return None if self._targets is None else self._targets.all()

    def with_targets(self, targets: Any) -> Features:
        """Return the same features with other targets ``[N]`` or ``[N, T]``, or with none; nothing is copied."""
        if targets is not None and self.shuffled:
            raise ValueError(
                "targets: expected features of rows in a fixed order, the order of the targets, got those of a DataLoader that "
                "shuffles; extract its dataset"
            )
        targets = None if targets is None else to_tensor(targets, "targets")
        if targets is not None and (targets.ndim == 0 or len(targets) != self.num_rows):
            raise ValueError(
                f"targets: expected {self.num_rows} entries, got shape {list(targets.shape)}; one is needed for each row"
            )
        other = copy.copy(self)
        other.__dict__.pop("targets", None)
        other._targets = None if targets is None else ShardedRows([targets])
        return other

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Index) -> Float[Tensor, "... D"]:
        return self._features[index]

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"at {str(self.path)!r}"
        with_targets = "without targets" if self._targets is None else "with targets"
        return f"Features([{self.num_rows}, {self.num_features}], {self.dtype}, {with_targets}, {where})"

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[Float[Tensor, "B D"], Shaped[Tensor, "B *T"] | None]]:
        """Yield (features, targets) in order, `batch_size` rows at a time."""
        count(batch_size, "batch_size", "Features.batches")
        for start in range(0, self.num_rows, batch_size):
            rows = slice(start, start + batch_size)
            yield self._features[rows], None if self._targets is None else self._targets[rows]

    def tensor(self) -> Float[Tensor, "N D"]:
        """Return all rows ``[N, D]``: memory-mapped and uncopied from one shard, joined in memory from several."""
        return self._features.all()

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest; ValueError for an altered shard, by name."""
        for name, expected in self._hashes:
            assert self.path is not None
            got = tensorfile.sha256(self.path / name)
            if got != expected:
                raise ValueError(
                    _damage(self.path, f"a shard {name} with sha256 {expected[:12]}...", f"{got[:12]}...")
                )


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(
            _damage(path, f"a folder with a {MANIFEST}", "none" if path.is_dir() else "no such folder")
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # truncated JSON, or bytes that are not text
        raise ValueError(
            _damage(path, f"a whole {MANIFEST}", f"one that cannot be read ({error})")
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(_damage(path, f"a {MANIFEST} of a store of features", "another kind of file"))
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"features at {path}: expected format version {VERSION}, got {manifest.get('version')}; use the version of "
            "bll_pyro that wrote this store, or extract the features again"
        )
    if manifest.get("sha256") != manifest_hash(manifest):
        raise ValueError(_damage(path, f"the {MANIFEST} that was written", "an altered one"))
    return manifest


def _open_shard(file: Path, shard: dict[str, Any], manifest: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    from safetensors import SafetensorError, safe_open

    folder, name = file.parent, file.name
    if not file.is_file():
        raise ValueError(_damage(folder, f"a shard {name}", "no such file"))
    if file.stat().st_size != shard["num_bytes"]:
        raise ValueError(
            _damage(folder, f"{shard['num_bytes']} bytes in shard {name}", str(file.stat().st_size))
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            features = opened.get_tensor("features")
            targets = None if manifest["targets"] is None else opened.get_tensor("targets")
    except SafetensorError as error:
        raise ValueError(_damage(folder, f"a readable shard {name}", str(error))) from error
    form = (tuple(features.shape), str(features.dtype))
    expected = ((shard["num_rows"], manifest["num_features"]), manifest["dtype"])
    if form != expected:
        raise ValueError(
            _damage(folder, f"features of shape and dtype {expected} in shard {name}", str(form))
        )
    return features, targets


def _damage(path: Path, expected: str, got: str) -> str:
    return (
        f"features at {path}: expected {expected}, got {got}; the store is damaged, or this is not a store: delete the "
        "folder and extract the features again, or restore it from a copy"
    )
