"""Extraction: one pass of a backbone over the data, whose features are kept in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.checks import device as check_device
from bll_pyro.features.backbone_pass import Devices, run_backbone
from bll_pyro.features.backbones import Backbone
from bll_pyro.features.data import read
from bll_pyro.features.fingerprint import module_fingerprint, plain_attributes
from bll_pyro.features.sources import Source
from bll_pyro.features.state import unwrapped
from bll_pyro.features.store import Features
from bll_pyro.features.tables import names_after
from bll_pyro.features.writer import MemoryWriter, ShardWriter
from bll_pyro.files import LOCK, SCRATCH, only_writer, user_path
from bll_pyro.observation import call
from bll_pyro.scope import isolated

TEXT = (
    "extract: expected targets that are numbers, which a store can hold, got labels {}; extract the inputs alone, and pass the "
    "labels beside the features: bll.fit(layer, (features, labels))"
)
VARIES = (
    "the data give other inputs each time that they are read (random augmentation), and stored features would not be found "
    "again: the store is left alone, and the features are those of one pass; pass the data without augmentation, or train the "
    "backbone along"
)
UNORDERED = (
    "extract: expected rows in an order that is known, or with targets, got a DataLoader that shuffles and gives none: nothing "
    "tells which row a feature is of; pass its dataset, or a loader with shuffle=False"
)
UNKEPT = "features are stored without it: extract the rows alone, and use bll.Data(features, ...) where they are used"


@call("extract")
def extract(
    backbone: nn.Module | None,
    data: Any,
    *,
    store: str | Path | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    devices: Sequence[str | torch.device] | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 0,
) -> Features:
    """Return the features of `data`, computed in eval mode, once per row.

    With a `store`, a call with the same backbone, data and dtype opens the features of the earlier call, and the backbone
    does not run. Targets are kept with their rows. The rows of a DataLoader that shuffles are kept in its order.

    Parameters
    ----------
    backbone
        A module that maps a batch of inputs to features ``[N, D]``; None if the inputs are features already.
    data
        Any data that :func:`bll_pyro.fit` takes; targets are optional.
    store
        A folder with one sub-folder per key. The key is the SHA-256 of weights, buffers, classes and plain attributes of
        the backbone, of the inputs after their transforms, and of `dtype`. None keeps the features in memory.
    batch_size
        Number of rows in a batch; a DataLoader has its own.
    device
        Device for the pass; the backbone is moved back afterwards. None runs it on its own device.
    devices
        Several devices in place of one, such as ``["cuda:0", "cuda:1"]``: batches go to them in turns, each with a copy of the
        backbone. The features are in the order of the rows.
    dtype
        Floating-point type of the stored features (float32, bfloat16, float16 ...); None keeps that of the backbone's output.
    num_workers
        Number of processes that load the items of a Dataset while earlier batches are computed; a DataLoader has its own.

    Returns
    -------
    Features
        N rows of D features, with the targets of the data.

    Raises
    ------
    ValueError
        If the output is not ``[N, D]``, a feature is NaN or infinite, or the store is damaged. Nothing is kept then.
    OSError
        If the store cannot be written, as on a full disk.

    A call with a store that was interrupted, killed, or stopped by a full disk leaves its finished shards, of up to 256 MiB: the
    same call goes on after them, to the same store.
    """
    # datasets and loaders may draw from the global random state, which must not change for the caller
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: expected a torch.nn.Module or None, got {type(backbone).__name__}")
    count(num_workers, "num_workers", "extract", least=0)
    check_device(device, "extract")
    if device is not None and devices is not None:
        raise ValueError(
            f"extract: expected device or devices, got both, {device} and {devices}; put all of them into devices"
        )
    if devices is not None and not devices:
        raise ValueError("extract: expected at least one of devices, got none; leave devices out")
    with isolated():
        source = read(data, need_targets=False, num_workers=num_workers)
        if source is not data:
            source.columns.refused("extract", UNKEPT, UNKEPT)
            if source.classes is not None:
                raise ValueError(TEXT.format(source.classes))
        if source.shuffled and not source.has_targets:
            warnings.warn(UNORDERED, RuntimeWarning, stacklevel=2)
        return extract_source(
            backbone, source, store=store, batch_size=batch_size, device=devices or device, dtype=dtype
        )


def extract_source(
    backbone: nn.Module | None,
    source: Source,
    *,
    store: str | Path | None = None,
    batch_size: int = 256,
    device: Devices = None,
    dtype: torch.dtype | None = None,
) -> Features:
    """:func:`extract` for data that has been read; random numbers come from the global state."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: expected a floating-point type, got {dtype}; use torch.float32")
    if store is not None and source.varies():
        warnings.warn(VARIES, RuntimeWarning, stacklevel=2)
        store = None
    names = names_after(backbone, source.feature_names)
    if store is None:
        memory = MemoryWriter(source.num_rows)
        run_backbone(backbone, source, memory.append, batch_size, device, dtype)
        features = memory.close()
        features.shuffled, features.feature_names = source.shuffled, names
        return features
    folder = user_path(store)
    inputs_hash, targets = source.scan()
    key = features_key(backbone, inputs_hash, dtype, names)
    if not (folder / key).exists():
        # who comes second waits, and finds the features
        with only_writer(folder, f".{key}{LOCK}"):
            for left in folder.glob(f".{key}{SCRATCH}*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not (folder / key).exists():
                before = _attributes(backbone)
                resumes = not source.shuffled  # else the rows of another call come in another order
                writing = ShardWriter(
                    folder / key, source.num_rows, key=key, feature_names=names, resume=resumes
                )
                with writing as writer:
                    pass_to = (writer.append, batch_size, device, dtype, writer.num_done)
                    run_backbone(backbone, source, *pass_to)
                    _note_records(backbone, before)
                    key = features_key(backbone, inputs_hash, dtype, names)
                    writer.close(folder / key, key)
    features = _open(folder / key, key)
    if not source.shuffled:
        return features.with_targets(targets)
    features.shuffled = True
    return features


def features_in_memory(
    backbone: nn.Module, source: Source, batch_size: int, device: str | torch.device | None
) -> Float[Tensor, "N D"]:
    """Features of all rows in one tensor, in the type of the backbone's output."""
    parts: list[Tensor] = []
    run_backbone(backbone, source, lambda features, _: parts.append(features), batch_size, device)
    whole = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    end = len(whole)
    while parts:  # from the last one on: each part is let go when it has been copied
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


# Plain attributes that a forward pass was found to change, by class; they are left out of later keys.
_RECORDS: WeakKeyDictionary[type[nn.Module], set[str]] = WeakKeyDictionary()


def features_key(
    backbone: nn.Module | None,
    inputs_hash: str,
    dtype: torch.dtype | None,
    names: tuple[str, ...] | None = None,
) -> str:
    """SHA-256 of all that determines the features and their names: the backbone, the inputs after their transforms, the dtype."""
    network = _network(backbone)
    parts: dict[str, Any] = {
        "backbone": None if network is None else module_fingerprint(network, _RECORDS.get(type(network), ())),
        "inputs": inputs_hash,
        "dtype": str(dtype),
    }
    if names is not None:  # the keys of features without names stay as they were
        parts["names"] = list(names)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _network(backbone: nn.Module | None) -> nn.Module | None:
    # without wrappers: neither torch.compile nor `unfreeze` of a Backbone changes the output
    plain = None if backbone is None else unwrapped(backbone)
    return plain.model if isinstance(plain, Backbone) else plain


def _attributes(backbone: nn.Module | None) -> dict[str, str]:
    network = _network(backbone)
    return {} if network is None else plain_attributes(network)


def _note_records(backbone: nn.Module | None, before: dict[str, str]) -> None:
    """Record the attributes that the pass has changed, such as a counter of calls: they do not determine the features."""
    network, after = _network(backbone), _attributes(backbone)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if network is not None and changed:
        _RECORDS.setdefault(type(network), set()).update(changed)


def _open(path: Path, key: str) -> Features:
    features = Features.open(path)
    if features.key != key:
        raise ValueError(
            f"features at {path}: expected the key {key[:12]}..., got {str(features.key)[:12]}...; the folder has been "
            "renamed or moved: delete it and extract the features again"
        )
    return features
