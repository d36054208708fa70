r"""A hash of rows that does not depend on how they were divided into shards, nor on their order.

Each row has the SHA-256 of its id, features and targets. A set of rows has the sum of these numbers modulo :math:`2^{256}`
(Bellare and Micciancio 1997), so that the sums of parts add up to that of the whole. It finds rows that are missing, doubled
or altered by accident; against somebody who chooses rows to deceive it is no protection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.shards.ids import Ids

MODULUS = 2**256


def sum_of_rows(features: Tensor, targets: Tensor | None, ids: Ids) -> int:
    """The sum over rows of features ``[n, D]``, targets ``[n, *T]`` and ids ``[n]``."""
    parts = [_bytes(features)] + ([] if targets is None else [_bytes(targets)])
    if not isinstance(ids, np.ndarray):
        parts.insert(0, _bytes(torch.arange(ids.start, ids.stop) if isinstance(ids, range) else ids))
    joined = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
    flat, width = memoryview(joined.reshape(-1)), joined.shape[1]
    rows: Iterator[Any] = (flat[start : start + width] for start in range(0, len(flat), width))
    sha256, from_bytes, total = hashlib.sha256, int.from_bytes, 0
    if isinstance(ids, np.ndarray):
        rows = (text.encode() + b"\0" + row for text, row in zip(ids, rows, strict=True))
    for row in rows:
        total += from_bytes(sha256(row).digest())
    return total % MODULUS


def hash_of_rows(total: int, num_rows: int, form: dict[str, Any]) -> str:
    """SHA-256 of a sum, the number of rows and their form, as a text."""
    content = {"sum": f"{total % MODULUS:064x}", "num_rows": num_rows, "form": form}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(rows: Tensor) -> np.ndarray:
    """Bytes ``[n, w]`` of each row."""
    flat = rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.reshape(len(rows), -1).numpy()
