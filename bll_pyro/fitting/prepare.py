"""Reads and checks the data of a fit once, before any work, and makes features of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.features.columns import Columns, Data
from bll_pyro.features.data import check_finite, read
from bll_pyro.features.extraction import extract_source
from bll_pyro.features.store import Features
from bll_pyro.inference.rows import FeatureRows
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer


def bundled(data: Any, sample_weight: Any, exposure: Any) -> Any:
    """Data with the weights and exposures that came beside it."""
    if sample_weight is None and exposure is None:
        return data
    if isinstance(data, Data):
        raise ValueError(
            "expected weights and exposures in one place, got a bll.Data and sample_weight or exposure beside it; put all into "
            "bll.Data(rows, sample_weight=..., exposure=...)"
        )
    return Data(data, sample_weight, exposure)


def check_exposure(layer: LastLayer, columns: Columns, target_shape: tuple[int, ...]) -> None:
    """Only counts have an exposure: one for a row, or one for each of its counts."""
    if columns.exposure is None:
        return
    if not layer.likelihood.is_count:
        raise ValueError(
            f"exposure: expected a likelihood of counts (Poisson, NegativeBinomial), got {type(layer.likelihood).__name__}; "
            "leave it out, or divide the targets by it"
        )
    width, num_targets = columns.exposure.shape[1], math.prod(target_shape)
    if width not in (1, num_targets):
        raise ValueError(
            f"exposure: expected shape [N] or [N, {num_targets}], one for each count, got [N, {width}]; reshape it"
        )


def prepare(layer: LastLayer, data: Any, what: str = "data", training: bool = True) -> TrainingData:
    """Read data, and check what is in memory; what a dataset makes on the way is checked when it comes.

    Parameters
    ----------
    layer
        Its likelihood checks the targets.
    data
        Inputs and targets, in any form.
    what
        Name of the data in errors.
    training
        Whether a layer is fitted on it, so that there have to be enough different targets.
    """
    source = read(data, need_targets=True, what=what, min_rows=2)
    whole, given = source.tensors(), None
    if whole is not None:
        inputs, given = whole
        assert given is not None
        targets = layer.likelihood.check_targets(given)
        if training:
            layer.likelihood.check_training(targets)
        check_finite(inputs, f"inputs of {what}")
        whole = inputs, targets
    else:
        _, given = source.example()
        assert given is not None
    target_shape = () if layer.likelihood.is_discrete else tuple(given.shape[1:])
    if source.columns.exposure is not None:
        check_exposure(layer, source.columns, target_shape)
    return TrainingData(source, layer.likelihood, target_shape, whole)


def features_of(
    data: TrainingData,
    backbone: nn.Module | None,
    store: Path | None,
    device: str | torch.device | None,
    batch_size: int,
    training: bool = True,
) -> tuple[FeatureRows, Tensor]:
    """Features ``[N, D]`` of prepared data, and its targets as the likelihood uses them."""
    if backbone is None and store is None and data.whole is not None:
        inputs, targets = data.whole
        if inputs.dim() != 2:
            raise ValueError(
                f"inputs: expected features of shape [N, D], got {list(inputs.shape)}; "
                "pass backbone=... for other inputs, or reshape with inputs.flatten(1)"
            )
        return inputs.detach() if inputs.is_floating_point() else inputs.float(), targets.detach()
    features = data.source.stored if backbone is None else None
    if features is None:
        features = extract_source(backbone, data.source, store=store, batch_size=batch_size, device=device)
    return features, data.whole[1] if data.whole is not None else checked_targets(data, features, training)


def checked_targets(data: TrainingData, features: Features, training: bool) -> Tensor:
    """Targets that came batch by batch, once all of them are there."""
    assert features.targets is not None
    for batch, _ in features.batches(65_536):
        check_finite(batch, "features")
    targets = data.likelihood.check_targets(features.targets)
    if training:
        data.likelihood.check_training(targets)
    return targets
