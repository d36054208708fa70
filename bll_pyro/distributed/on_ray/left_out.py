"""Rows without a result: notes of the watchdogs while a call runs, and one file with the ids of all of them."""

from __future__ import annotations

import json
from typing import Any

from bll_pyro.distributed.on_ray.watchdog import DEATH, NOTE, TIME
from bll_pyro.shards.place import Place

LEFT_OUT = "_left-out.json"


def batches_left_out(place: Place, part: str, retries: int) -> dict[str, list[Any]]:
    """Row ids of the batches of a part that are left out, by the name of the batch."""
    name = part + NOTE
    if place.size(name) is None:
        return {}
    notes = json.loads(place.read(name))
    return {
        batch: found["row_ids"] for batch, found in notes.items() if found[TIME] or found[DEATH] > retries
    }


def rows_left_out(place: Place, retries: int) -> list[int | str]:
    """The ids of all rows that are left out, in order; notes go into the file of all, and deaths are no longer counted."""
    names = place.names()
    ids: set[Any] = set(json.loads(place.read(LEFT_OUT))["row_ids"]) if LEFT_OUT in names else set()
    notes = [name for name in names if name.endswith(NOTE)]
    for name in notes:
        for found in batches_left_out(place, name.removesuffix(NOTE), retries).values():
            ids.update(found)
    if notes and ids:
        place.write(LEFT_OUT, json.dumps({"row_ids": sorted(ids)}).encode())
    for name in notes:
        place.remove(name)
    return sorted(ids)
