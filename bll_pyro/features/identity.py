"""What data and a backbone are, as plain data that differ where the rows or the network do.

Rows in memory are hashed whole. Rows that a dataset loads are hashed in part, since a pass over them may take as long as an
epoch: up to 64 of them, evenly spaced, each loaded with the same random numbers. Rows that come out different the second time
are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.features.extraction import features_key
from bll_pyro.features.fingerprint import DataHash
from bll_pyro.features.forward import trainable_parameters
from bll_pyro.features.sources import Source
from bll_pyro.scope import isolated

NUM_ROWS = 64  # most rows of a dataset that are loaded


def data_identity(source: Source) -> dict[str, Any]:
    """Rows, their order, and their columns."""
    found: dict[str, Any] = {
        "class": "rows in memory" if source.in_memory else "rows that are loaded",
        "num_rows": source.num_rows,
        "shuffled": source.shuffled,
        "batches": source.own_batches,
        "seeds": [each.initial_seed() for each in source.generators],
    }
    if source.in_memory:
        kept = None if source.stored is None else source.stored.sha256
        if kept is not None:  # a store has said what its rows and targets are when it was written
            found["store"] = kept
        else:
            found["inputs"], targets = source.scan()
            found["targets"] = None if targets is None else hash_of(targets)
    else:
        found["inputs"], found["targets"] = some_rows(source)
    for name in ("weight", "exposure"):
        column = getattr(source.columns, name)
        found["sample_weight" if name == "weight" else name] = None if column is None else hash_of(column)
    return found


def rows_identity(source: Source) -> tuple[Any, ...]:
    """Number and hashes of rows: of all where they are in memory, or of some that are loaded or read."""
    if source.in_memory and source.stored is None:
        inputs, targets = source.scan()
        return source.num_rows, inputs, None if targets is None else hash_of(targets)
    return source.num_rows, *some_rows(source)


def some_rows(source: Source) -> tuple[str | None, str | None]:
    """Hashes of inputs and targets of evenly spaced rows, or of the first where rows have no numbers."""
    number = min(NUM_ROWS, source.num_rows)
    part = source.subset(torch.linspace(0, source.num_rows - 1, number).round().long())
    states = [each.get_state() for each in source.generators]

    def look() -> tuple[str | None, str | None]:
        inputs, targets = DataHash(), DataHash()
        for each in source.generators:
            each.manual_seed(0)
        with isolated(0):
            for batch, labels in [source.example()] if part is None else part.batches(NUM_ROWS):
                try:
                    inputs.update(batch, None)
                except TypeError:  # graphs and other inputs that are not made of tensors
                    return None, None
                if labels is not None:
                    targets.update(labels, None)
        return inputs.hexdigest(), targets.hexdigest()

    try:
        pairs = zip(look(), look(), strict=True)
        inputs, targets = (first if first == second else None for first, second in pairs)
    finally:  # the fit draws as if nobody had looked
        for each, state in zip(source.generators, states, strict=True):
            each.set_state(state)
    return inputs, targets


def network_identity(backbone: nn.Module | None, trains: bool) -> dict[str, Any] | None:
    """Class, code and weights of a backbone, and which parameters are trained along."""
    if backbone is None:
        return None
    found: dict[str, Any] = {
        "class": type(backbone).__qualname__,
        "code_and_weights": features_key(backbone, "", None),
    }
    if trains:
        trained = {id(parameter) for parameter in trainable_parameters(backbone)}
        found["trained"] = [name for name, each in backbone.named_parameters() if id(each) in trained]
    return found


def hash_of(values: Tensor) -> str:
    """SHA-256 of a tensor."""
    digest = DataHash()
    digest.update(values, None)
    return digest.hexdigest()
