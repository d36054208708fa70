"""Parts: what many writers put into one store, each whole or not at all, and the commit that makes a store of them.

A part is a shard with a name that its writer chooses, such as the number of a block of rows. Beside its file stands a small record
with form, ids and hashes, written last: a part without a record is not there. Writing a part again replaces it, so that a task
that is tried twice leaves its rows once. The commit reads the records alone, orders the parts by their ids and writes the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.shards.ids import (
    NUMBERS,
    TEXTS,
    checked_ids,
    first_ids,
    order_of_ids,
    plain_id,
    stored,
    taken,
)
from bll_pyro.shards.manifest import MANIFEST
from bll_pyro.shards.place import Place, place_of
from bll_pyro.shards.row_hash import sum_of_rows
from bll_pyro.shards.shard import file_hash, write_shard

SUFFIX, RECORD = ".safetensors", ".part.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class WrittenPart:
    """What is known of a part that was written.

    Parameters
    ----------
    file, num_rows, num_bytes, sha256
        Its shard.
    rows_sum
        Sum of the hashes of its rows, in hexadecimal; see :mod:`bll_pyro.shards.row_hash`.
    first_id, last_id
        Smallest and largest id.
    consecutive
        Whether its ids are all whole numbers between these, in order.
    form
        Number of features and types: what all parts of a store have in common.
    key
        SHA-256 of backbone, inputs and dtype; None if it was not computed.
    """

    file: str
    num_rows: int
    num_bytes: int
    sha256: str
    rows_sum: str
    first_id: int | str
    last_id: int | str
    consecutive: bool
    form: dict[str, Any]
    key: str | None


class PartWriter:
    """Writes parts of a store; any number of writers, in any number of processes and machines, may share a folder.

    It can be sent to other processes. ``Features.commit(where)`` makes the store when all parts are written.

    Parameters
    ----------
    where
        Folder of the store, a path or a URL that fsspec knows.
    key
        Something that all rows of the store have in common, such as the SHA-256 of the backbone; parts of another key are refused.
    """

    def __init__(self, where: str | Path | Place, *, key: str | None = None) -> None:
        self.place, self.key = place_of(where), key

    def write(
        self, part: str, features: Tensor, targets: Tensor | None = None, *, row_ids: Any
    ) -> WrittenPart:
        """Write rows as one part, in the order of their ids, in place of an earlier part of this name.

        Parameters
        ----------
        part
            Name of the part: letters, digits, ``.``, ``_`` and ``-``. The same rows must get the same name when they come again.
        features, targets
            Floats ``[n, D]``, and targets ``[n]`` or ``[n, T]``, or none.
        row_ids
            One id for each row: a range, whole numbers or texts. Each id occurs once in a store.

        Raises
        ------
        ValueError
            If features are not finite floats ``[n, D]`` (the ids of the rows are named), ids or targets do not match, or the
            store is finished.
        OSError
            If it cannot be written, as on a full disk; the parts that are finished are untouched.
        """
        if not NAME.fullmatch(part):
            raise ValueError(
                f"part: expected a name of letters, digits, '.', '_' and '-', got {part!r}; it names a file"
            )
        if self.place.size(MANIFEST) is not None:
            raise ValueError(
                f"features at {self.place}: expected a store that is not finished, got one; write to another folder"
            )
        features, ids = features.detach().cpu(), checked_ids(row_ids, len(features))
        if features.dim() != 2 or features.dtype not in KINDS or not features.numel():
            raise ValueError(
                f"features: expected floats of shape [n, D] with n > 0, got {features.dtype} of shape {list(features.shape)}; "
                "reshape with .flatten(1) or convert with .float()"
            )
        if targets is not None:
            targets = targets.detach().cpu()
            if targets.dim() == 0 or len(targets) != len(features):
                raise ValueError(
                    f"targets: expected one entry for each of {len(features)} rows of features, got shape "
                    f"{list(targets.shape)}; rows were lost between extraction and targets: give both of the same rows"
                )
        if not torch.isfinite(features).all():
            wrong = (~torch.isfinite(features)).any(1).nonzero()[:, 0]
            raise ValueError(
                f"features: expected finite values, got {len(wrong)} rows with NaN or infinite ones, with the ids "
                f"{first_ids(list(taken(ids, wrong)))}; leave these rows out, or check their inputs and the backbone"
            )
        if (order := order_of_ids(ids)) is not None:
            features, ids = features[order], taken(ids, order)
            targets = None if targets is None else targets[order]
        if isinstance(ids, Tensor) and int(ids[-1] - ids[0]) == len(ids) - 1:
            ids = range(int(ids[0]), int(ids[-1]) + 1)
        tensors = {"features": features} | ({} if targets is None else {"targets": targets}) | stored(ids)
        self.place.remove(part + RECORD)  # its old record is not that of the new file
        num_bytes, digest = write_shard(self.place, part + SUFFIX, tensors)
        made = WrittenPart(
            part + SUFFIX,
            len(features),
            num_bytes,
            digest,
            f"{sum_of_rows(features, targets, ids):x}",
            plain_id(ids[0]),
            plain_id(ids[-1]),
            isinstance(ids, range),
            form_of(features, targets, TEXTS if isinstance(ids, np.ndarray) else NUMBERS),
            self.key,
        )
        record_part(self.place, part, made)
        return made

    def finished(self, *, verify: bool = False) -> dict[str, WrittenPart]:
        """The parts that are written, by name; of another key none. ``verify`` leaves out those whose hash differs."""
        found = {}
        for part, record in written_parts(self.place).items():
            whole = record.key == self.key and self.place.size(record.file) == record.num_bytes
            if whole and (not verify or file_hash(self.place, record.file) == record.sha256):
                found[part] = record
        return found

    def remove(self, parts: Iterable[str]) -> None:
        """Delete parts."""
        for part in parts:
            remove_part(self.place, part, part + SUFFIX)


def record_part(place: Place, part: str, made: WrittenPart) -> None:
    """Write the record of a part, whose file is there: now the part is."""
    place.write(part + RECORD, json.dumps(asdict(made)).encode())


def remove_part(place: Place, part: str, file: str) -> None:
    """Delete a part: its record first."""
    place.remove(part + RECORD)
    place.remove(file)


def form_of(features: Tensor, targets: Tensor | None, kind: str) -> dict[str, Any]:
    """What all parts of a store have in common."""
    of_targets = None if targets is None else {"dtype": str(targets.dtype), "shape": list(targets.shape[1:])}
    return {
        "num_features": features.shape[1],
        "dtype": str(features.dtype),
        "targets": of_targets,
        "row_ids": kind,
    }


def written_parts(place: Place, names: Collection[str] | None = None) -> dict[str, WrittenPart]:
    """The records in a place, by the name of the part; one that is cut does not count."""
    found = {}
    for name in place.names() if names is None else names:
        if name.endswith(RECORD):
            try:
                found[name.removesuffix(RECORD)] = WrittenPart(**json.loads(place.read(name)))
            except (ValueError, TypeError, FileNotFoundError):  # cut, or replaced at this moment
                continue
    return found


def overlapping(parts: Sequence[WrittenPart]) -> list[WrittenPart]:
    """Of parts in the order of their first ids, those whose range of ids meets that of another."""
    found: dict[str, WrittenPart] = {}
    reach: WrittenPart | None = None
    for part in parts:
        if reach is not None and part.first_id <= reach.last_id:  # type: ignore[operator]  # of one kind
            found |= {reach.file: reach, part.file: part}
        if reach is None or part.last_id > reach.last_id:  # type: ignore[operator]
            reach = part
    return list(found.values())
