"""The checkpoint of a call of ``fit``: which fit it is, its features and its end, and what an interrupt says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro import archive
from bll_pyro.checkpoint.folder import FIT, GO_ON, UNWRITTEN, Checkpoint, kept
from bll_pyro.declaration import to_plain
from bll_pyro.features.data import read
from bll_pyro.features.identity import data_identity, hash_of, network_identity
from bll_pyro.features.recorded import Recorded
from bll_pyro.features.sources import Source
from bll_pyro.features.state import stored_state
from bll_pyro.features.store import Features
from bll_pyro.fitting.calibration import Automatic
from bll_pyro.fitting.result import Fit
from bll_pyro.inference import Inference
from bll_pyro.inference.rows import FeatureRows
from bll_pyro.inference.training_data import TrainingData, numbered
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.scope import random_state, set_random_state

NOTHING_KEPT = (
    'stopped, and nothing was kept; bll.fit(..., checkpoint="runs/a") keeps what is done in that folder, and the same call then '
    "goes on from there"
)


def calibration_source(calibration: Any, likelihood: Likelihood) -> Any:
    """Held-out rows, read once, with class numbers in place of labels; a share, None and ``bll.AUTOMATIC`` as they are."""
    if calibration is None or isinstance(calibration, (Automatic, Real, str)):
        return calibration
    source = read(calibration, need_targets=True, what="calibration", min_rows=2)
    return numbered(source, likelihood, "calibration")


def begin(
    keeper: Checkpoint,
    layer: LastLayer,
    inference: Inference,
    backbone: nn.Module | None,
    store: Path | None,
    data: Source,
    validation: Source | None,
    calibration: Any,
    **numbers: Any,
) -> Fit | None:
    """Check that the folder is of this call, and return the fit if it is finished there.

    Else the generators of loaders are set to where they were at the start of the first call. TypeError or ValueError if a
    declaration, or a backbone that is trained, cannot be written to a file.
    """
    tensors: dict[str, Tensor] = {}
    held_out = calibration if isinstance(calibration, Source) else None
    if inference.trains_backbone and backbone is not None:
        stored_state(backbone)
    keeper.belongs_to(
        {
            "layer": to_plain(layer, tensors, "layer"),
            "inference": to_plain(inference, tensors, "inference"),
            "tensors": {name: hash_of(value[None]) for name, value in tensors.items()},
            "data": data_identity(data),
            "validation_data": None if validation is None else data_identity(validation),
            "calibration": repr(calibration) if held_out is None else data_identity(held_out),
            "backbone": network_identity(backbone, inference.trains_backbone),
            **numbers,
            "versions": {name: version(name) for name in ("bll-pyro", "torch", "pyro-ppl")},
        }
    )
    if (finished := finished_fit(keeper, inference.trains_backbone, backbone, store)) is not None:
        return replace(finished, feature_names=data.feature_names)
    sources = [each for each in (data, validation, held_out) if each is not None]
    generators = [each for source in sources for each in source.generators]
    states = kept("start", lambda: [each.get_state() for each in generators])
    for each, state in zip(generators, states, strict=True):
        each.set_state(state)
    return None


def features_of(
    rows: TrainingData,
    keeper: Checkpoint | None,
    backbone: nn.Module | None,
    store: Path | None,
    device: str | torch.device | None,
    batch_size: int,
) -> tuple[FeatureRows, Tensor]:
    """Features and targets; a checkpoint keeps those that were computed or loaded, if no store does."""
    if keeper is None or (backbone is None and rows.source.in_memory):
        return rows.features(backbone, store, device, batch_size)
    part, generators = keeper.part("features"), rows.source.generators
    saved = part.saved()
    if saved is None:
        features, targets = rows.features(backbone, store, device, batch_size)
        content = None
        if store is None:
            content = (features.tensor() if isinstance(features, Features) else features), targets
        part.finish((content, [each.get_state() for each in generators], random_state()))
        return features, targets
    content, states, drawn = saved[0]
    features, targets = rows.features(backbone, store, device, batch_size) if content is None else content
    for each, state in zip(generators, states, strict=True):
        each.set_state(state)
    set_random_state(drawn)
    return features, targets


def finished_fit(
    keeper: Checkpoint, trains: bool, backbone: nn.Module | None, store: Path | None
) -> Fit | None:
    """The fit that an earlier call has finished; None where there is none. A backbone that is trained is filled."""
    folder = keeper.folder / FIT
    if not (folder / archive.MANIFEST).exists():  # nor where a process was killed as it wrote it
        return None
    try:
        parts = archive.load_parts(folder, backbone=backbone if trains else None, head_only=not trains)
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}; or delete {keeper.folder} to begin anew") from error
    recorded = None if backbone is None or trains else Recorded(backbone)
    return Fit(**{"backbone": backbone, **parts}, store=store, recorded=recorded)


def keep_finished(keeper: Checkpoint, fit: Fit) -> None:
    """Write the fit that is finished; what led to it goes. With a full disk it is left as it is, with a warning."""
    folder = keeper.folder / FIT
    if (folder / archive.MANIFEST).exists():
        return
    try:
        (fit if fit.inference.trains_backbone else fit.head).save(folder)
    except OSError as error:
        warnings.warn(UNWRITTEN.format(path=folder, error=error), UserWarning, stacklevel=2)
        return
    keeper.clear()


def say_how_to_go_on(stop: KeyboardInterrupt, keeper: Checkpoint | None) -> None:
    """Let an interrupt without a message say what was kept, and how."""
    if not stop.args:
        where = NOTHING_KEPT if keeper is None else f"stopped; {GO_ON.format(folder=keeper.folder)}"
        stop.args = (where,)
