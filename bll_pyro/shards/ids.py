"""Row ids: whole numbers or texts, one for each row of a store, kept with the rows in the shard's file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBERS, TEXTS = "numbers", "texts"  # kinds of ids in a manifest
NUM_NAMED = 5  # ids in a message

type Ids = range | Tensor | np.ndarray  # consecutive numbers, numbers [n], texts [n]


def checked_ids(given: Any, num_rows: int) -> Ids:
    """Ids as a range, numbers ``[n]`` int64, or an array of texts ``[n]``.

    Raises
    ------
    ValueError
        If they are not one id for each row, all numbers or all texts, or an id occurs twice.
    """
    if isinstance(given, range) and given.step == 1:
        ids: Ids = given
    elif isinstance(given, Tensor):
        ids = given.detach().cpu()
    else:
        array = np.asarray(given)
        is_text = array.dtype.kind == "U" or (
            array.dtype == object and all(isinstance(each, str) for each in array)
        )
        ids = array.astype(object) if is_text else torch.from_numpy(np.array(array))
    is_whole = not isinstance(ids, Tensor) or not (ids.is_floating_point() or ids.dtype == torch.bool)
    shape = (len(ids),) if isinstance(ids, range) else tuple(ids.shape)
    if shape != (num_rows,) or not is_whole:
        form = type(given).__name__ if isinstance(ids, range) else f"{ids.dtype} of shape {list(shape)}"
        raise ValueError(
            f"row_ids: expected one whole number or one text for each of {num_rows} rows, got {form}; give each row the id "
            "by which you find it again"
        )
    if isinstance(ids, Tensor):
        ids = ids.long()
    if (double := doubles(ids)) is not None:
        raise ValueError(
            f"row_ids: expected each id once, got {double!r} twice; a row must not be written twice"
        )
    return ids


def doubles(ids: Ids) -> Any:
    """An id that occurs twice; None where there is none."""
    if isinstance(ids, range):
        return None
    if isinstance(ids, Tensor):
        values = ids.sort().values
        same = (values[1:] == values[:-1]).nonzero()
        return int(values[same[0, 0]]) if len(same) else None
    texts = np.sort(ids)
    found = (texts[1:] == texts[:-1]).nonzero()[0]
    return str(texts[found[0]]) if len(found) else None


def order_of_ids(ids: Ids) -> Tensor | None:
    """Numbers of the rows ``[n]`` in the order of their ids; None where they are in it."""
    if isinstance(ids, range):
        return None
    order = ids.argsort() if isinstance(ids, Tensor) else torch.from_numpy(np.argsort(ids, kind="stable"))
    return None if bool((order == torch.arange(len(order))).all()) else order


def taken(ids: Ids, index: Tensor) -> Ids:
    """The ids of some rows."""
    if isinstance(ids, range):
        return index + ids.start
    return ids[index] if isinstance(ids, Tensor) else ids[index.numpy()]


def plain_id(value: Any) -> int | str:
    """An id as JSON holds it."""
    return value if isinstance(value, str) else int(value)


def first_ids(ids: Sequence[Any]) -> str:
    """The first of some ids, for messages."""
    shown = ", ".join(repr(plain_id(each)) for each in ids[:NUM_NAMED])
    return shown + (", ..." if len(ids) > NUM_NAMED else "")


def stored(ids: Ids) -> dict[str, Tensor]:
    """The tensors of a shard that hold its ids; none for consecutive numbers, of which the manifest has the first."""
    if isinstance(ids, range):
        return {}
    if isinstance(ids, Tensor):
        return {"row_ids": ids.contiguous()}
    encoded = [text.encode() for text in ids]
    ends = torch.tensor([len(each) for each in encoded]).cumsum(0)
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {"row_id_bytes": torch.from_numpy(joined), "row_id_ends": ends}


def read_texts(content: Tensor, ends: Tensor) -> np.ndarray:
    """Texts ``[n]`` from the bytes of all of them and where each ends."""
    whole, places = content.numpy().tobytes(), [0, *ends.tolist()]
    texts = [whole[start:stop].decode() for start, stop in pairwise(places)]
    return np.array(texts, dtype=object)
