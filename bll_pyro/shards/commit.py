"""The commit: one store of the parts that writers have written, the same whoever wrote them, and in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.shards.ids import NUMBERS, Ids, checked_ids, doubles, first_ids, read_texts
from bll_pyro.shards.manifest import FORMAT, MANIFEST, VERSION, write_manifest
from bll_pyro.shards.parts import RECORD, SUFFIX, WrittenPart, overlapping, written_parts
from bll_pyro.shards.place import Place
from bll_pyro.shards.row_hash import hash_of_rows
from bll_pyro.shards.shard import read_rows


def commit(
    place: Place,
    *,
    key: str | None,
    num_rows: int | None,
    row_ids: Any,
    feature_names: Sequence[str] | None,
) -> None:
    """Write the manifest of the parts in a place, in the order of their ids; a store that is finished stays as it is.

    Raises
    ------
    ValueError
        If there are no parts, they differ in form or key, an id occurs twice, or rows are missing. The parts stay.
    """
    if place.size(MANIFEST) is not None:
        _clear(place)
        return
    names = place.names()
    parts = written_parts(place, names)
    records = sorted(parts.values(), key=lambda part: (part.first_id, part.file))
    if not records:
        raise ValueError(
            f"features at {place}: expected parts to make a store of, got none; write them first"
        )
    _check(place, records, key)
    total = sum(part.num_rows for part in records)
    expected = None if row_ids is None else checked_ids(row_ids, len(row_ids))
    _check_rows(place, records, total, len(expected) if expected is not None else num_rows, expected)
    form = dict(records[0].form)
    rows_sum = sum(int(part.rows_sum, 16) for part in records)
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, "key": key or records[0].key}
    manifest |= {"num_rows": total, **form, "rows_sha256": hash_of_rows(rows_sum, total, form)}
    manifest |= {} if feature_names is None else {"feature_names": list(feature_names)}
    manifest["shards"] = [shard_entry(part) for part in records]
    write_manifest(place, manifest)
    _clear(place)


def shard_entry(part: WrittenPart) -> dict[str, Any]:
    """What a manifest says of a shard."""
    names = ("file", "num_rows", "num_bytes", "sha256", "rows_sum", "first_id", "last_id", "consecutive")
    return {name: getattr(part, name) for name in names}


def _clear(place: Place) -> None:
    """Delete the records, which the manifest replaces, and what writers that were killed have left."""
    for name in place.names():
        if name.endswith(RECORD):
            place.remove(name)


def _check(place: Place, records: list[WrittenPart], key: str | None) -> None:
    """Raise unless parts are of one form and key, and their files have the size that was written."""
    first = records[0]
    for part in records:
        if part.key != first.key or (key is not None and part.key not in (None, key)):
            raise ValueError(
                f"features at {place}: expected parts of one key, {key or first.key}, got {part.key} in {part.file}; it is of "
                "another backbone or other inputs: delete it, and write these rows again"
            )
        if part.form != first.form:
            raise ValueError(
                f"features at {place}: expected parts of one form, {first.form}, got {part.form} in {part.file}; delete "
                "it, and write these rows again"
            )
        if (size := place.size(part.file)) != part.num_bytes:
            raise ValueError(
                f"features at {place}: expected {part.num_bytes} bytes in {part.file}, got {size}; delete its record "
                f"{part.file.removesuffix(SUFFIX)}{RECORD}, and write these rows again"
            )


def _check_rows(
    place: Place, records: list[WrittenPart], total: int, num_rows: int | None, expected: Ids | None
) -> None:
    """Raise if an id occurs twice, or rows are missing or too many."""
    refuse_doubles(place, records, lambda part: read_ids(place, part))
    if num_rows is None or (total == num_rows and expected is None):
        return
    if expected is None:
        missing = _gaps(records, num_rows)
        raise ValueError(
            f"features at {place}: expected {num_rows} rows, got {total}{missing}; write the parts that are missing"
        )
    found = np.asarray(joined_ids([read_ids(place, part) for part in records]))
    wanted = np.asarray(expected)
    missing_ids, others = np.setdiff1d(wanted, found), np.setdiff1d(found, wanted)
    if len(missing_ids) or len(others):
        got = [f"{len(missing_ids)} missing ({first_ids(missing_ids.tolist())})"] if len(missing_ids) else []
        got += [f"{len(others)} others ({first_ids(others.tolist())})"] if len(others) else []
        raise ValueError(
            f"features at {place}: expected the rows of {len(wanted)} ids, got {' and '.join(got)}; write the parts that are "
            "missing"
        )


def refuse_doubles(place: Place, records: Sequence[WrittenPart], read: Callable[[WrittenPart], Ids]) -> None:
    """Raise if an id occurs twice in parts in the order of their first ids, of which ``read`` gives all ids."""
    close = overlapping(records)
    if not close:
        return
    parts = [read(part) for part in close]
    double = doubles(joined_ids(parts))
    if double is not None:
        files = [part.file for part, ids in zip(close, parts, strict=True) if double in ids]
        raise ValueError(
            f"{place}: expected each row once, got the id {double!r} in {' and '.join(files)}; two rows have it, or one task "
            "wrote it under two names: give each row its own id, or delete one of the files with its record"
        )


def _gaps(records: list[WrittenPart], num_rows: int) -> str:
    """Which numbers are missing, where the ids are those from 0 on."""
    if records[0].form["row_ids"] != NUMBERS or not all(part.consecutive for part in records):
        return ""
    starts = [int(part.first_id) for part in records] + [num_rows]
    ends = [0] + [int(part.last_id) + 1 for part in records]
    gaps = [f"{end} to {start - 1}" for end, start in zip(ends, starts, strict=True) if end < start]
    return f", without the rows {', '.join(gaps[:5])}" if gaps else ""


def read_ids(place: Place, part: WrittenPart) -> Ids:
    """The ids of a part."""
    return ids_in(place, shard_entry(part), str(part.form["row_ids"]))


def ids_in(place: Place, entry: dict[str, Any], kind: str) -> Ids:
    """The ids of a shard, from its entry in a manifest or from its file."""
    if entry["consecutive"]:
        return range(entry["first_id"], entry["last_id"] + 1)
    rows = read_rows(place, entry["file"])
    if kind == NUMBERS:
        return rows["row_ids"][:]
    return read_texts(rows["row_id_bytes"][:], rows["row_id_ends"][:])


def joined_ids(parts: Sequence[Ids]) -> Ids:
    """The ids of several parts, one after the other."""
    if all(isinstance(ids, range) for ids in parts):
        starts = [ids.start for ids in parts] + [parts[-1].stop]  # type: ignore[union-attr]
        if [ids.stop for ids in parts] == starts[1:]:  # type: ignore[union-attr]
            return range(starts[0], starts[-1])
    if any(isinstance(ids, np.ndarray) for ids in parts):
        return np.concatenate([np.asarray(ids, dtype=object) for ids in parts])
    numbers = [torch.arange(ids.start, ids.stop) if isinstance(ids, range) else ids for ids in parts]
    return torch.cat([ids for ids in numbers if isinstance(ids, Tensor)])
