"""Extraction: a backbone runs once over the data, and its features are kept, in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bll_pyro.features.backbones import Backbone, compute_features, frozen
from bll_pyro.features.data import read
from bll_pyro.features.fingerprint import module_fingerprint, plain_attributes
from bll_pyro.features.sources import Source
from bll_pyro.features.store import Features
from bll_pyro.features.writer import MemoryWriter, ShardWriter
from bll_pyro.scope import isolated


def extract(
    backbone: nn.Module | None,
    data: Any,
    *,
    store: str | Path | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    num_workers: int = 0,
) -> Features:
    """Return the features of `data`, computed in eval mode, once per row.

    With a `store`, a call with the same backbone, data and dtype opens what an earlier call kept, and the backbone
    does not run. Rows with targets keep them. The rows of a DataLoader that shuffles are kept in the order in which
    they came.

    Parameters
    ----------
    backbone
        A module that turns a batch of inputs into features ``[N, D]``; None when the inputs are features already.
    data
        Any data that :func:`bll_pyro.fit` takes; targets are optional.
    store
        A folder with one sub-folder for each key, the sha256 of weights, buffers, classes and plain attributes of the
        backbone, of the data after its transforms, and of the dtype. None keeps the features in memory.
    batch_size
        Rows at a time; a DataLoader brings its own.
    device
        Where the backbone runs; it is moved back afterwards. None: where it is.
    dtype
        The type that the features are kept in.
    num_workers
        Processes that load the items of a Dataset.

    Raises
    ------
    ValueError
        When the output is not ``[N, D]``, a feature is NaN or infinite, or the store is damaged. Nothing is kept then.
    """
    with isolated():  # datasets and loaders may draw from the global random state, which is the caller's
        source = read(data, need_targets=False, num_workers=num_workers)
        return extract_source(
            backbone, source, store=store, batch_size=batch_size, device=device, dtype=dtype
        )


def extract_source(
    backbone: nn.Module | None,
    source: Source,
    *,
    store: str | Path | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Features:
    """:func:`extract` for data that was read already; random numbers come from the global state."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}; 256 suits most networks")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type, got {dtype}; use torch.float32")
    if store is None:
        memory = MemoryWriter(source.num_rows)
        _run(backbone, source, memory.append, batch_size, device, dtype)
        return memory.close()
    inputs_hash, targets = source.scan()
    key = features_key(backbone, inputs_hash, dtype)
    path = Path(store) / key
    if path.exists():
        features = _open(path, key)
    else:
        before = _attributes(backbone)
        with ShardWriter(path, source.num_rows, key=key) as writer:
            _run(backbone, source, writer.append, batch_size, device, dtype)
            _note_records(backbone, before)
            key = features_key(backbone, inputs_hash, dtype)
            features = writer.close(Path(store) / key, key)
    return features if source.shuffled else features.with_targets(targets)


# Plain attributes that a pass changes by itself, by class: seen when it happens, and left out of later keys.
_RECORDS: WeakKeyDictionary[type[nn.Module], set[str]] = WeakKeyDictionary()


def features_key(backbone: nn.Module | None, inputs_hash: str, dtype: torch.dtype) -> str:
    """sha256 of everything that decides the features: the backbone, the inputs after their transforms, the dtype."""
    network = _network(backbone)
    parts = {
        "backbone": None if network is None else module_fingerprint(network, _RECORDS.get(type(network), ())),
        "inputs": inputs_hash,
        "dtype": str(dtype),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _network(backbone: nn.Module | None) -> nn.Module | None:
    return (
        backbone.model if isinstance(backbone, Backbone) else backbone
    )  # `unfreeze` does not change the output


def _attributes(backbone: nn.Module | None) -> dict[str, str]:
    network = _network(backbone)
    return {} if network is None else plain_attributes(network)


def _note_records(backbone: nn.Module | None, before: dict[str, str]) -> None:
    """Remember which attributes the pass has changed (a counter of calls): they don't decide the features."""
    network, after = _network(backbone), _attributes(backbone)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if network is not None and changed:
        _RECORDS.setdefault(type(network), set()).update(changed)


def _open(path: Path, key: str) -> Features:
    features = Features.open(path)
    if features.key != key:
        raise ValueError(
            f"features at {path}: expected the key {key[:12]}..., got {str(features.key)[:12]}...; the folder was "
            "renamed or moved here: delete it and extract the features again"
        )
    return features


def _run(
    backbone: nn.Module | None,
    source: Source,
    append: Callable[[Tensor, Tensor | None], None],
    batch_size: int,
    device: str | torch.device | None,
    dtype: torch.dtype,
) -> None:
    row = 0
    modes = nullcontext() if backbone is None else frozen(backbone)
    with modes, _moved(backbone, device), torch.no_grad(), _progress(source.num_rows) as advance:
        for inputs, targets in source.batches(batch_size):
            # a first batch that is not [N, D] ends the pass before it begins
            features = compute_features(backbone, inputs).to("cpu", dtype)
            _check(features, row, source, dtype)
            append(features, None if targets is None else targets.cpu())
            row += len(features)
            advance(len(features))


def _check(features: Tensor, first_row: int, source: Source, dtype: torch.dtype) -> None:
    finite = torch.isfinite(features)
    if finite.all():
        return
    row = first_row + int((~finite).any(1).nonzero()[0, 0])
    order = " in the order of the DataLoader" if source.shuffled else ""
    raise ValueError(
        f"features: expected finite values in {dtype}, got {int((~finite).sum())} that are NaN or infinite, the first "
        f"in row {row}{order}; look at this input, at the scale of the inputs and at the backbone's weights, or take a "
        "wider dtype"
    )


@contextmanager
def _moved(backbone: nn.Module | None, device: str | torch.device | None) -> Iterator[None]:
    """Have the backbone on `device` inside the block, and where it was afterwards."""
    home = None if backbone is None else next((p.device for p in backbone.parameters()), None)
    if backbone is None or home is None or device is None or torch.device(device) == home:
        yield
        return
    try:
        backbone.to(device)
        yield
    finally:
        backbone.to(home)


@contextmanager
def _progress(num_rows: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where a person watches: standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("features", total=num_rows)
        yield lambda num_done: bar.advance(task, num_done)
