"""What comes into :class:`bll_pyro.ELBO`, checked: constants of the targets, and the rows of a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.features.columns import Columns
from bll_pyro.frame import Frame, as_floats
from bll_pyro.inference.row_targets import Targets, with_columns
from bll_pyro.inference.training_data import check_exposure
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.likelihoods.base import TargetShape


def rows_of_batch(
    layer: LastLayer,
    frame: Frame,
    target_shape: TargetShape,
    features: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    exposure: Tensor | None,
) -> Targets:
    """Targets of a batch in the units of the frame, with their weights ``[B]`` and exposures, where there are any."""
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != frame.num_features:
        got = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"ELBO: expected a tensor of features [B, {frame.num_features}], got {got}; pass what the backbone returns for "
            "the batch"
        )
    shape = (len(features), *target_shape)
    values = checked_targets(layer.likelihood, targets)
    if values.numel() != math.prod(shape) or len(values) != shape[0]:
        raise ValueError(
            f"ELBO: expected targets of shape {list(shape)}, got {list(targets.shape)}; give target_shape=... for several "
            "targets a row"
        )
    if weight is not None:
        weight = of_the_batch(weight, shape[:1], "sample_weight").to(frame.center)
        if weight.device.type == "cpu" and not torch.compiler.is_compiling() and bool((weight < 0).any()):
            raise ValueError(
                f"ELBO: expected weights from 0 on, got {float(weight.min())}; drop rows that are not to count"
            )
    if exposure is not None:
        is_for_each = len(shape) > 1 and exposure.shape[1:] == shape[1:]
        exposure = of_the_batch(exposure, shape if is_for_each else (shape[0], 1), "exposure").to(
            frame.center
        )
    columns = Columns(weight, exposure)
    check_exposure(layer, columns, shape[1:])
    return with_columns(frame.targets(values.to(features.device)), columns)


def checked_targets(likelihood: Likelihood, targets: Tensor) -> Tensor:
    """Targets as the likelihood uses them; their values are looked at where nobody has to wait for a device."""
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"ELBO: expected a tensor of targets, got {type(targets).__name__}; use torch.as_tensor"
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        return likelihood.check_targets(targets)
    if likelihood.is_discrete:
        return targets.long()
    values = as_floats(targets)
    return values[:, None] if values.dim() == 1 else values


def of_the_batch(values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Weights or exposures of the rows of a batch, in this shape."""
    values = torch.as_tensor(values)
    if values.numel() != math.prod(shape) or len(values) != shape[0]:
        raise ValueError(
            f"ELBO: expected {name} of shape {list(shape)}, got {list(values.shape)}; pass one for each row of the batch"
        )
    return values.reshape(shape)


def checked_constants(
    layer: LastLayer, target_shape: TargetShape, center: Any, scale: Any
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Centre and scale ``[T]`` of the targets; 0 and 1 where a layer does not standardise them."""
    num_targets = math.prod(target_shape)
    standardizes = bool(layer.standardize) and layer.likelihood.real_valued
    if not standardizes and not (center is scale is None):
        raise ValueError(
            f"ELBO: expected no target_center and target_scale for {type(layer.likelihood).__name__} with "
            f"standardize={layer.standardize}, whose targets are taken as they are; leave them out"
        )
    if standardizes and (center is None or scale is None):
        raise ValueError(
            "ELBO: expected target_center and target_scale, the mean and standard deviation of the training targets, since the "
            "layer standardises them, got None; give both, or use bll.ELBO.from_data(layer, data, backbone), or "
            "LastLayer(..., standardize=False)"
        )
    found = []
    for name, value, default in (("target_center", center, 0.0), ("target_scale", scale, 1.0)):
        given = torch.as_tensor(default if value is None else value).detach().cpu()
        given = given if given.is_floating_point() else given.to(torch.get_default_dtype())
        if given.numel() not in (1, num_targets) or not bool(given.isfinite().all()):
            raise ValueError(
                f"ELBO: expected {name} as a finite number, or one for each of {num_targets} targets, got {value!r}"
            )
        found.append(given.reshape(-1).expand(num_targets).clone())
    if not bool((found[1] > 0).all()):
        raise ValueError(f"ELBO: expected target_scale above 0, got {scale!r}; it is a standard deviation")
    return found[0], found[1]
