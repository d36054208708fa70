"""A fit from sums over rows that were made elsewhere, for inferences that need nothing else of the rows."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from bll_pyro.fitting.result import Fit
from bll_pyro.fitting.stages import is_beyond_float32
from bll_pyro.frame import Frame
from bll_pyro.inference import Inference
from bll_pyro.inference.base import FitWarning
from bll_pyro.inference.exact.raw_sums import moments_of, sums_in_frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.standardization import log_densities_in_user_units, make_frame
from bll_pyro.layer import LastLayer
from bll_pyro.scope import isolated


def fit_from_sums(
    layer: LastLayer,
    sums: SufficientStatistics,
    inference: Inference,
    backbone: nn.Module | None,
    feature_names: tuple[str, ...] | None,
    dtype: torch.dtype,
    seed: int,
) -> Fit:
    """The fit of the rows of these sums, which are in the user's units; ``dtype`` is that of the features.

    Raises
    ------
    ValueError
        If the inference, or the layer's scales, need more of the rows than their sums.
    """
    num_features, num_targets = len(sums.feature_mean), len(sums.target_mean)
    if not inference.from_sums:
        raise ValueError(
            f"fit_statistics: expected bll.Exact(), which needs sums over rows alone, got {inference!r}; fit a store of the "
            "features"
        )
    if layer.standardize == "columns":
        raise ValueError(
            'fit_statistics: expected one scale of all features, got standardize="columns", which needs the rows; leave it out'
        )
    if sums.num_rows < 2:
        raise ValueError(f"fit_statistics: expected sums of two rows or more, got {sums.num_rows}")
    target_shape = () if num_targets == 1 else (num_targets,)
    num_outputs = layer.likelihood.num_outputs(target_shape)
    layer.prior.check((num_outputs, num_features))
    inference.check(layer, num_outputs, num_features + int(layer.bias))
    dtype = torch.promote_types(dtype, torch.float32)
    moments, target_moments = moments_of(sums, dtype, dtype)

    def found(dtype: torch.dtype) -> tuple[Tensor, Tensor, Frame]:
        """No rows, in their shape, and the frame of those of the sums."""
        features, targets = (
            torch.empty(0, num_features, dtype=dtype),
            torch.empty(0, *target_shape, dtype=dtype),
        )
        frame = make_frame(
            layer, features, targets, False, dtype, moments=moments, target_moments=target_moments
        )
        return features, targets, frame

    features, targets, frame = found(dtype)
    if dtype == torch.float32 and is_beyond_float32(frame):
        features, targets, frame = found(torch.float64)
    with isolated(seed, frame.center.dtype):
        rows = DesignRows(features, targets, frame)
        rows.sums = sums_in_frame(sums, frame)
        posterior, trace = inference.run(layer.in_frame(frame), rows, target_shape, seed=seed)
    log_densities_in_user_units(trace, posterior.frame, sums.weight)
    for message in trace.messages:
        warnings.warn(message, FitWarning, stacklevel=3)
    return Fit(
        layer,
        posterior,
        inference,
        trace,
        seed,
        sums.num_rows,
        backbone=backbone,
        feature_names=feature_names,
    )
