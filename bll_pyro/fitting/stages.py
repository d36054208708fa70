"""The stages of a fit: a backbone that is trained along, and a fit on features."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.store import Features
from bll_pyro.frame import Frame
from bll_pyro.gaussian.factorization import NotPositiveDefinite
from bll_pyro.inference import Inference, Trace
from bll_pyro.inference.exact.raw_sums import moments_of, raw_sums, sums_in_frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import DesignRows, FeatureRows, in_order, is_streamed
from bll_pyro.inference.standardization import (
    BATCH_SIZE,
    Moments,
    log_densities_in_user_units,
    make_frame,
    weighted_moments,
)
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.posterior import Posterior
from bll_pyro.ranks import ALONE, Processes
from bll_pyro.scope import isolated

SMALLEST = 1e-15  # constants of the frame whose squares float32 holds, and their inverses
LARGE_COUNT = 1e4  # its log density y log y has an error of 0.01 nats in float32
NOT_COPIED = (
    "backbone: expected a module that can be copied, since a copy is trained, got {}: {}; run lazy modules on a batch first, and "
    "take torch.nn.utils.parametrizations.weight_norm for weight_norm"
)


def train_backbone(
    inference: Inference,
    layer: LastLayer,
    backbone: nn.Module | None,
    rows: TrainingData,
    seed: int,
    validation: TrainingData | None,
    device: str | torch.device | None,
) -> tuple[Posterior, Trace]:
    """Train the backbone and the last layer together; log densities are in the user's units."""
    assert backbone is not None
    posterior, trace = inference.train_backbone(layer, backbone, rows, seed, validation, device)
    num_rows, columns = rows.source.num_rows, rows.source.columns
    total = float(num_rows) if columns is NO_COLUMNS else columns.total_weight(num_rows)
    log_densities_in_user_units(trace, posterior.frame, total)
    return posterior, trace


def copied(backbone: nn.Module | None) -> nn.Module:
    """A copy of a network; ValueError if it cannot be copied."""
    assert backbone is not None
    try:
        return copy.deepcopy(backbone)
    except Exception as error:  # whatever the parts of a network raise
        raise ValueError(NOT_COPIED.format(type(backbone).__name__, error)) from error


def fit_features(
    layer: LastLayer,
    features: FeatureRows,
    targets: Tensor,
    inference: Inference,
    target_shape: TargetShape,
    seed: int = 0,
    columns: Columns = NO_COLUMNS,
    validation: tuple[FeatureRows, Tensor, Columns] | None = None,
    device: str | torch.device | None = None,
    is_table: bool = False,
    is_extreme: bool = False,
    ranks: Processes = ALONE,
) -> tuple[Posterior, Trace]:
    """Fit on features ``[N, D]`` and targets as the likelihood uses them.

    Makes the frame of the training rows (of a table, or of features of a network), brings the declaration into its units, and
    runs the inference. It computes in float64 where the features, or the coordinates of the prior, are in float64, for large
    counts, whose log densities have more digits than float32 holds, and for numbers whose squares float32 does not hold. ``ranks``
    share the training rows; validation rows are the same on all of them.
    """
    num_outputs, num_features = layer.likelihood.num_outputs(target_shape), features.shape[1]
    layer.prior.check((num_outputs, num_features))
    inference.check(layer, num_outputs, num_features + int(layer.bias))
    given = layer.prior.frame
    is_wide = torch.float64 in (features.dtype, None if given is None else given.center.dtype)
    is_large = layer.likelihood.is_count and float(ranks.largest(targets.max())) > LARGE_COUNT
    dtype = torch.float64 if is_wide or is_large or is_extreme else torch.float32
    with isolated(seed, dtype):
        moments, target_moments, sums = None, None, None
        if isinstance(features, Features) and is_streamed(features):
            moments, target_moments, sums = first_pass(inference, features, targets, columns)
        frame = make_frame(
            layer, features, targets, inference.rotates(layer), dtype, columns, is_table, moments, target_moments, ranks
        )  # fmt: skip
        if dtype == torch.float32 and is_beyond_float32(frame):
            return fit_features(
                layer, features, targets, inference, target_shape, seed, columns, validation, device, is_table,
                is_extreme=True, ranks=ranks,
            )  # fmt: skip
        rows = DesignRows(features, targets, frame, device or "cpu", columns, ranks)
        rows.sums = None if sums is None else sums_in_frame(sums, frame).to(rows.device)
        held_out = None
        if validation is not None:
            held_out = DesignRows(*validation[:2], frame, device or "cpu", validation[2])
        inside = layer.in_frame(frame)
        try:
            posterior, trace = inference.run(inside, rows, target_shape, seed=seed, validation=held_out)
        except torch.linalg.LinAlgError as error:
            raise NotPositiveDefinite(
                f"{type(inference).__name__}: expected matrices that can be factored, got: {error}; use standardize=True, a "
                "smaller prior scale such as priors.Normal(scale=1.0), or features in double precision"
            ) from error
    log_densities_in_user_units(trace, posterior.frame, rows.total_weight)
    return posterior, trace


def is_beyond_float32(frame: Frame) -> bool:
    """Whether a constant of a frame has a square that float32 does not hold."""
    constants = torch.cat([frame.center, frame.scale, frame.target_center, frame.target_scale]).abs()
    constants = constants[constants.isfinite() & (constants > 0)]
    return bool(((constants < SMALLEST) | (constants > 1 / SMALLEST)).any())


def first_pass(
    inference: Inference, features: Features, targets: Tensor, columns: Columns
) -> tuple[Moments, Moments | None, SufficientStatistics | None]:
    """Moments of a store that is read ahead; those of its targets and the sums too where the inference needs nothing else.

    In one pass.

    ValueError if a feature is NaN or infinite, with the row and its id.
    """
    sums = raw_sums(features, targets, columns) if inference.from_sums else None
    if sums is None:
        moments, target_moments = weighted_moments(in_order(features, BATCH_SIZE), columns.weight), None
    else:
        moments, target_moments = moments_of(sums, features.dtype, targets.dtype)
    if not bool(torch.isfinite(moments.mean + moments.deviations).all()):
        features.check_finite()
    return moments, target_moments, sums
