"""A store of features: the output of a backbone, with targets, in memory, in a folder, or behind a URL.

On disk a store is a folder of safetensors files (shards) and a manifest with the number of rows, the shapes, the
dtype, the key and the SHA-256 of every shard (:mod:`bll_pyro.shards`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.features.arrays import to_tensor
from bll_pyro.features.passes import CHECKED_ROWS, read_ahead, refuse_nonfinite, shuffled
from bll_pyro.features.rows import Index, ShardedRows
from bll_pyro.shards.commit import commit, ids_in, joined_ids
from bll_pyro.shards.ids import Ids
from bll_pyro.shards.manifest import damage, read_manifest
from bll_pyro.shards.opening import MAPPED, StoredRows, open_shard, way_of_reading
from bll_pyro.shards.parts import PartWriter
from bll_pyro.shards.place import Place, place_of
from bll_pyro.shards.shard import file_hash
from bll_pyro.shards.shuffling import BLOCK_BYTES, BUFFER_BYTES


class Features:
    """Rows of features ``[N, D]``, with targets or without; immutable.

    Made by :func:`bll_pyro.extract`, :func:`bll_pyro.from_parquet`, :meth:`open`, :meth:`commit` or :meth:`from_tensors`.
    ``features[index]`` gives rows: one row ``[D]`` for a number, n rows ``[n, D]`` for a slice, row numbers or a mask.

    Attributes
    ----------
    num_rows, num_features
        N and D.
    num_shards
        Number of shards; a single one that is memory-mapped is read without a copy.
    dtype
        The dtype of the features.
    path
        The folder of the store; None in memory, and behind a URL.
    key
        SHA-256 of backbone, inputs and dtype; None if it was not computed.
    sha256
        SHA-256 of the rows with their ids and targets, the same for the same rows, however they were written; None in memory, for
        a part of a store, with other targets, and for stores of version 0.1.
    read
        ``"mmap"`` or ``"ahead"``, see :meth:`open`.
    shuffled
        Whether :func:`bll_pyro.extract` got the rows from a DataLoader that shuffles: other targets cannot be matched to them.
    feature_names
        Names of the features, where they are columns of a data frame; else None.
    """

    def __init__(
        self,
        shards: Sequence[tuple[StoredRows, StoredRows | None]],
        *,
        place: Place | None = None,
        manifest: dict[str, Any] | None = None,
        key: str | None = None,
        read: str = MAPPED,
    ) -> None:
        self._features = ShardedRows([features for features, _ in shards])
        targets = [part for _, part in shards if part is not None]
        self._targets = ShardedRows(targets) if targets else None
        self._place, self._manifest = place, manifest or {}
        self.path, self.key, self.read = None if place is None else place.folder, key, read
        self.sha256: str | None = self._manifest.get("rows_sha256")
        names = self._manifest.get("feature_names")  # stores of version 0.1.0 have none
        self.feature_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.shuffled = False
        self._row_ids: Ids | None = None
        self._of_store()

    def _of_store(self) -> None:
        first = self._features.parts[0]
        self.num_shards, self.num_rows = len(self._features.parts), self._features.num_rows
        self.num_features, self.dtype = first.shape[1], first.dtype

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
    def open(cls, path: str | Path, *, read: str | None = None) -> Features:
        """Open the store in the folder `path`, or behind a URL that fsspec knows; rows are read from disk when they are used.

        Sizes and headers of the shards are checked here, their contents by :meth:`verify`.

        Parameters
        ----------
        path
            The folder or URL.
        read
            ``"mmap"`` (default for a folder) maps the shards into memory: the system keeps of them what it has room for, and a
            fit holds them in memory where they take up to 4 GiB. ``"ahead"`` (default for a URL) reads large pieces by a thread
            while those before are used, and keeps none: for stores larger than memory, and for network disks, on which a
            mapping is slow.

        Raises
        ------
        ValueError
            If the manifest or a shard is missing, truncated or altered, or they do not match.
        """
        place = place_of(path)
        read, manifest = way_of_reading(place, read), read_manifest(place)
        shards = [open_shard(place, shard, manifest, read) for shard in manifest["shards"]]
        return cls(shards, place=place, manifest=manifest, key=manifest["key"], read=read)

    @classmethod
    def writer(cls, path: str | Path, *, key: str | None = None) -> PartWriter:
        """A writer of a part of the rows of a new store; several may write to one folder or URL, see :class:`PartWriter`."""
        return PartWriter(path, key=key)

    @classmethod
    def commit(
        cls,
        path: str | Path,
        *,
        key: str | None = None,
        num_rows: int | None = None,
        row_ids: Any = None,
        feature_names: Sequence[str] | None = None,
        read: str | None = None,
    ) -> Features:
        """Make a store of the parts that writers have written to a folder or URL, in the order of their ids, and open it.

        The store does not depend on who wrote which part and when. A finished store is opened as it is.

        Parameters
        ----------
        path
            Their place.
        key
            The key of the store, which parts that name one must have; None takes that of the parts.
        num_rows, row_ids
            Number of the rows, or their ids, that there must be; None takes those that are there.
        feature_names
            Names of the features, if they have some.
        read
            As in :meth:`open`.

        Raises
        ------
        ValueError
            If parts differ in form or key, are cut, an id occurs twice, or rows are missing. The parts stay as they are.
        """
        place = place_of(path)
        commit(place, key=key, num_rows=num_rows, row_ids=row_ids, feature_names=feature_names)
        return cls.open(path, read=read)

    @cached_property
    def targets(self) -> Shaped[Tensor, "N *T"] | None:
        """All targets ``[N]`` or ``[N, T]``, in memory, or None."""
        return None if self._targets is None else self._targets.all()

    @property
    def row_ids(self) -> Ids:
        """Ids of the rows: a range, whole numbers ``[N]``, or an array of texts ``[N]``; row numbers where none were given."""
        if self._row_ids is None:
            kind, entries = self._manifest.get("row_ids"), self._manifest.get("shards", ())
            if kind is None:
                self._row_ids = range(self.num_rows)
            else:
                assert self._place is not None
                self._row_ids = joined_ids([ids_in(self._place, entry, kind) for entry in entries])
        return self._row_ids

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
        other.sha256 = None
        return other

    def between(self, start: int, stop: int) -> Self:
        """The rows from one number to another (not included), as a store of its own; nothing is read or copied."""
        if not 0 <= start < stop <= self.num_rows:
            raise ValueError(
                f"between: expected 0 <= start < stop <= {self.num_rows}, got {start} and {stop}; a store has at least one row"
            )
        other = copy.copy(self)
        other.__dict__.pop("targets", None)
        other._features = self._features.between(start, stop)
        other._targets = None if self._targets is None else self._targets.between(start, stop)
        other.sha256 = None
        other._row_ids = self.row_ids[start:stop]
        other._of_store()
        return other

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Index) -> Float[Tensor, "... D"]:
        return self._features[index]

    def __repr__(self) -> str:
        where = "in memory" if self._place is None else f"at {str(self._place)!r}"
        with_targets = "without targets" if self._targets is None else "with targets"
        return f"Features([{self.num_rows}, {self.num_features}], {self.dtype}, {with_targets}, {where})"

    def in_order(self, size: int) -> Iterator[Float[Tensor, "B D"]]:
        """Yield the features in order, ``size`` rows at a time; of a store that is read ahead, from pieces that a thread reads."""
        if self.read == MAPPED:
            for start in range(0, self.num_rows, size):
                yield self._features[start : start + size]
            return
        yield from read_ahead(self._features, size)

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[Float[Tensor, "B D"], Shaped[Tensor, "B *T"] | None]]:
        """Yield (features, targets) in order, `batch_size` rows at a time."""
        count(batch_size, "batch_size", "Features.batches")
        start = 0
        for rows in self.in_order(batch_size):
            stop = start + len(rows)
            yield rows, None if self._targets is None else self._targets[start:stop]
            start = stop

    def shuffled_batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> Iterator[tuple[Float[Tensor, "B D"], Tensor]]:
        """Yield (features, row numbers), each row once, in a random order that reads blocks of rows and mixes them in a buffer.

        :mod:`bll_pyro.shards.shuffling` says how near that is to a random order of all rows. All batches but the last have
        ``batch_size`` rows. A thread fills the next buffer meanwhile, so that two are in memory.

        The state of ``generator`` determines the order; ``buffer_bytes`` and ``block_bytes`` are the sizes of the buffer and of a
        block.
        """
        count(batch_size, "batch_size", "Features.shuffled_batches")
        return shuffled(self._features, batch_size, generator, buffer_bytes, block_bytes)

    def tensor(self) -> Float[Tensor, "N D"]:
        """Return all rows ``[N, D]``: memory-mapped and uncopied from one shard, joined in memory from several."""
        return self._features.all()

    def check_finite(self) -> None:
        """Read all features; ValueError if some are NaN or infinite, with the number and the id of the first such row."""
        refuse_nonfinite(self.in_order(CHECKED_ROWS), lambda number: self.row_ids[number : number + 1])

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest; ValueError for an altered shard, by name."""
        for shard in self._manifest.get("shards", ()):
            assert self._place is not None
            name, expected = shard["file"], shard["sha256"]
            got = file_hash(self._place, name)
            if got != expected:
                raise ValueError(
                    damage(self._place, f"a shard {name} with sha256 {expected[:12]}...", f"{got[:12]}...")
                )
