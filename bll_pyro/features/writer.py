"""Writers of features: into one tensor in memory, or into a folder of shards that exists only once it is complete."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from bll_pyro.features.store import Features
from bll_pyro.files import SCRATCH, user_path
from bll_pyro.shards.ids import NUMBERS
from bll_pyro.shards.parts import RECORD, SUFFIX, PartWriter, form_of

SHARD_BYTES = (
    2**28
)  # default largest size of the rows in one shard, in bytes: what an interrupt loses at most
UNFINISHED = ".unfinished"  # how the names of folders end that a later call goes on from


class MemoryWriter:
    """Collects batches of features and targets of `num_rows` rows in memory."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._block: _Block | None = None

    def append(self, features: Tensor, targets: Tensor | None) -> None:
        """Add a batch ``[B, D]`` with its targets ``[B]`` or ``[B, T]``."""
        if self._block is None:
            self._block = _Block(self._num_rows, features, targets)
        self._block.append(features, targets)

    def close(self) -> Features:
        """Return the rows as a store in memory."""
        if self._block is None or self._block.num_rows != self._num_rows:
            raise ValueError(_wrong_number(self._num_rows, self._block.num_rows if self._block else 0))
        return Features.from_tensors(*self._block.rows())


class ShardWriter:
    """Writes batches of features and targets into the folder `path`, shard by shard, in the order of the rows.

    The shards are written to a hidden folder next to `path`, which :meth:`close` renames to `path`. Leaving the ``with``
    block before that (an error, an interrupt) deletes the hidden folder, and an earlier store at `path` is never changed.
    At most one shard is held in memory. With ``resume`` the finished shards of a call that was interrupted, killed, or stopped by
    a full disk stay: the next call for the same path goes on after them (``num_done``).

    Parameters
    ----------
    path
        The folder to write; it must not exist.
    num_rows
        N, the number of rows that will be appended.
    key
        SHA-256 of backbone, inputs and dtype.
    shard_bytes
        The largest size of the rows in one shard, in bytes; None takes 256 MiB.
    feature_names
        Names of the features, if they have some.
    resume
        Whether to keep what is finished, and to go on from what an earlier writer of this path has left; for paths whose name
        says what the rows are, and one writer at a time.

    Attributes
    ----------
    num_done
        Number of the first rows that are there already; those after them are to be appended.
    """

    def __init__(
        self,
        path: str | Path,
        num_rows: int,
        *,
        key: str | None = None,
        shard_bytes: int | None = None,
        feature_names: Sequence[str] | None = None,
        resume: bool = False,
    ) -> None:
        self._path = user_path(path)
        if self._path.exists():
            raise ValueError(
                f"{self._path}: expected a new folder, got one that exists; delete it or choose another"
            )
        mark = UNFINISHED if resume else f"{SCRATCH}{uuid.uuid4().hex}"
        self._partial = self._path.with_name(f".{self._path.name}{mark}")
        self._parts = PartWriter(self._partial)
        self._num_rows, self._key, self._shard_bytes = num_rows, key, shard_bytes or SHARD_BYTES
        self._names, self._resume, self._num_shards, self.num_done = feature_names, resume, 0, 0
        self._block: _Block | None = None
        self._form: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._partial.mkdir(parents=True, exist_ok=self._resume)
        parts = self._parts.finished(verify=True)
        for name in sorted(parts):
            part = parts[name]
            if name != self._name or part.first_id != self.num_done or not part.consecutive:
                break
            self._num_shards, self.num_done = self._num_shards + 1, self.num_done + part.num_rows
            self._form = part.form
        kept = sorted(parts)[: self._num_shards]
        known = {f"{name}{suffix}" for name in kept for suffix in (SUFFIX, RECORD)}
        for name in set(self._parts.place.names()) - known:  # cut, or not in a row with the others
            self._parts.place.remove(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what refuses the data, or the network, would refuse them again
        stays = self._resume and self._num_shards > 0 and not isinstance(error, (ValueError, TypeError))
        if not stays or error is None:
            shutil.rmtree(self._partial, ignore_errors=True)  # after close() there is nothing left to delete

    @property
    def _name(self) -> str:
        """Name of the next shard."""
        return f"shard-{self._num_shards:05d}"

    def append(self, features: Tensor, targets: Tensor | None) -> None:
        """Add a batch ``[B, D]`` with its targets ``[B]`` or ``[B, T]``."""
        start = 0
        while start < len(features):
            if self._block is None:
                self._block = self._new_block(features, targets)
            stop = start + self._block.room
            self._block.append(features[start:stop], None if targets is None else targets[start:stop])
            start = stop
            if self._block.room == 0:
                self._write()

    def close(self, path: Path | None = None, key: str | None = None) -> Features:
        """Write the last shard and the manifest, rename the folder, and open it.

        A `path` in the same folder, and a `key`, replace those of the constructor.
        """
        self._path, self._key = path or self._path, key or self._key
        if self._block is not None:
            self._write()
        if self.num_done != self._num_rows:
            raise ValueError(_wrong_number(self._num_rows, self.num_done))
        Features.commit(self._partial, key=self._key, num_rows=self._num_rows, feature_names=self._names)
        try:
            self._partial.rename(self._path)
        except OSError:
            # another process has written the same features in the meantime: open its store
            if self._key is None or not self._path.exists() or Features.open(self._path).key != self._key:
                raise
        return Features.open(self._path)

    def _new_block(self, features: Tensor, targets: Tensor | None) -> _Block:
        row = features[0].numel() * features.element_size()
        row += 0 if targets is None else targets[:1].numel() * targets.element_size()
        left = self._num_rows - self.num_done
        if left <= 0:
            raise ValueError(_wrong_number(self._num_rows, self.num_done + len(features)))
        form = form_of(features, targets, NUMBERS)
        if self._form and form != self._form:
            raise ValueError(
                f"features: expected rows of one form, {self._form}, got {form}; check the dataset's items"
            )
        self._form = form
        return _Block(min(max(1, self._shard_bytes // row), left), features, targets)

    def _write(self) -> None:
        assert self._block is not None
        features, targets = self._block.rows()
        self._parts.write(
            self._name, features, targets, row_ids=range(self.num_done, self.num_done + len(features))
        )
        self._num_shards, self.num_done = self._num_shards + 1, self.num_done + len(features)
        self._block = None


class _Block:
    """Memory for `num_rows` rows of features and targets, filled in order."""

    def __init__(self, num_rows: int, features: Tensor, targets: Tensor | None) -> None:
        self._features = torch.empty((num_rows, *features.shape[1:]), dtype=features.dtype)
        self._targets = (
            None if targets is None else torch.empty((num_rows, *targets.shape[1:]), dtype=targets.dtype)
        )
        self.num_rows = 0

    @property
    def room(self) -> int:
        return len(self._features) - self.num_rows

    def append(self, features: Tensor, targets: Tensor | None) -> None:
        rows = slice(self.num_rows, self.num_rows + len(features))
        if len(features) > self.room:
            raise ValueError(_wrong_number(len(self._features), self.num_rows + len(features)))
        _fill(self._features, rows, features, "features")
        if (targets is None) != (self._targets is None):
            raise ValueError(
                "targets: expected them with every batch or with none, got both; check the dataset's items"
            )
        if targets is not None and self._targets is not None:
            _fill(self._targets, rows, targets, "targets")
        self.num_rows += len(features)

    def rows(self) -> tuple[Tensor, Tensor | None]:
        return self._features[: self.num_rows], None if self._targets is None else self._targets[
            : self.num_rows
        ]


def _fill(block: Tensor, rows: slice, batch: Tensor, what: str) -> None:
    expected = (rows.stop - rows.start, *block.shape[1:])
    if tuple(batch.shape) != expected or batch.dtype != block.dtype:
        raise ValueError(
            f"{what}: expected {block.dtype} of shape {list(expected)} as in the first batch, got {batch.dtype} of "
            f"shape {list(batch.shape)}; every row must have one shape and type"
        )
    block[rows] = batch


def _wrong_number(expected: int, got: int) -> str:
    return f"features: expected {expected} rows, got {got}; the data must give the same rows in every pass"
