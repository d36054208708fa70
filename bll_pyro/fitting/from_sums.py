"""A fit from sums over rows that were made elsewhere, for inferences that need nothing else of the rows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from bll_pyro.fitting.result import Fit
from bll_pyro.fitting.stages import is_beyond_float32
from bll_pyro.frame import Frame
from bll_pyro.inference import Inference
from bll_pyro.inference.base import FitWarning
from bll_pyro.inference.exact.raw_sums import moments_of, sums_in_frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.standardization import (
    Moments,
    brought_frame,
    common_scale,
    log_densities_in_user_units,
    target_scale,
)
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
    frame = _frame(layer, sums, dtype)
    if dtype == torch.float32 and is_beyond_float32(frame):
        frame = _frame(layer, sums, torch.float64)
    with isolated(seed, frame.center.dtype):
        like = frame.center
        rows = DesignRows(like.new_empty(0, num_features), like.new_empty(0, *target_shape), frame)
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


def _frame(layer: LastLayer, sums: SufficientStatistics, dtype: torch.dtype) -> Frame:
    """Centre and scale as :func:`bll_pyro.inference.standardization.make_frame` finds them on features of a network."""
    num_features, num_targets = len(sums.feature_mean), len(sums.target_mean)
    if layer.prior.frame is not None:
        return brought_frame(layer, layer.prior.frame, num_features, num_targets, dtype)
    frame = Frame.identity(num_features, num_targets, torch.empty(0, dtype=dtype), layer.bias)
    if not layer.standardize:
        return frame
    moments = moments_of(sums, dtype)
    center, spread = target_scale(Moments(sums.weight, sums.target_mean, sums.square, dtype))
    return replace(
        frame,
        center=moments.mean.to(dtype),
        scale=common_scale(moments).to(dtype),
        target_center=center.to(dtype),
        target_scale=spread.to(dtype),
    )
