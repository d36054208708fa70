"""Blocks of rows: how a program that subsamples is run on all of its rows, and how the parts are joined."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.datatree.programs.sites import Site


def blocks_of(subsampled: Mapping[str, tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Blocks of rows that cover every subsampled plate; the last of a plate overlaps the one before where it must."""
    choices = []
    for name, (num_rows, size) in subsampled.items():
        starts = [*range(0, size - num_rows, num_rows), size - num_rows]
        choices.append([(name, torch.arange(start, start + num_rows)) for start in starts])
    return [dict(choice) for choice in itertools.product(*choices)]


def join(
    full: NDArray[Any] | None, part: NDArray[Any], site: Site, what: str, rows: Mapping[str, Tensor]
) -> NDArray[Any]:
    """Put one block's part of a value, log-density or mask ``[draw, ...]`` into the array over the full plates."""
    if not site.in_any(rows):
        if full is not None and not np.allclose(full, part, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"site {site.name!r} lies outside the subsampled plates {sorted(rows)} but its {what} changes with "
                "the rows that they choose. Move it inside the plate (for pyro.deterministic also give event_dim)."
            )
        return part if full is None else full
    event_dim = site.event_dim if what == "value" else 0
    shape = site.value_shape if what == "value" else site.batch_shape
    if full is None:
        full = np.empty((len(part), *shape), dtype=part.dtype)
    index: list[NDArray[Any]] = [np.arange(size) for size in full.shape]
    for plate in site.plates:
        if plate.name in rows:
            index[full.ndim + plate.axis - event_dim] = rows[plate.name].numpy()
    full[np.ix_(*index)] = part
    return full
