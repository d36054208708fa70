"""Features of new rows as a fit sees them: in the order of its columns, through its backbone and store, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.features.data import check_finite, read
from bll_pyro.features.extraction import extract
from bll_pyro.features.forward import compute_features, frozen
from bll_pyro.features.recorded import noticed
from bll_pyro.features.sources import Source
from bll_pyro.features.store import Features
from bll_pyro.frame import as_floats
from bll_pyro.scope import isolated

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

PREDICTION_ROWS = 2048  # a batch of 8,192 leaves the cache between one step and the next


def feature_batches(fit: Fit, inputs: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Features ``[n, D]`` and targets of inputs, batch by batch."""
    if type(batch_size) is not int or batch_size < 1:
        batch_size = count(batch_size, "batch_size", "Fit", remedy="256 suits most networks")
    given = read(inputs, need_targets=False, what="inputs").arranged(fit.feature_names, "inputs")
    source: Source | Features = given
    backbone = fit.backbone
    runs_code = backbone is not None or not given.in_memory
    if backbone is not None:
        object.__setattr__(fit, "recorded", noticed(fit.recorded, backbone))
        if fit.store is not None:
            source = extract(backbone, given, store=fit.store, batch_size=batch_size)
            backbone, runs_code = None, False
    batches = source.batches(PREDICTION_ROWS if backbone is None else batch_size)
    while True:
        with isolated() if runs_code else nullcontext():  # code of the user's may draw random numbers
            batch = next(batches, None)
            if batch is None:
                return
            features, targets = batch
            if backbone is not None:
                with frozen(backbone):
                    features = compute_features(backbone, features)
        _check(fit, features)
        yield features if features.is_floating_point() else as_floats(features), targets


def _check(fit: Fit, features: Any) -> None:
    expected = fit.posterior.frame.num_features
    is_tensor = isinstance(features, Tensor)
    if not is_tensor or features.dim() != 2 or features.shape[1] != expected:
        remedy = "use the features that the fit was made with"
        if fit.backbone is None and not (is_tensor and features.dim() <= 2):
            remedy = "this fit has no backbone: pass features, or fit with backbone=..."
        form = list(features.shape) if is_tensor else f"a {type(features).__name__}"
        raise ValueError(f"inputs: expected features of shape [N, {expected}], got {form}; {remedy}")
    check_finite(features, "inputs")
