"""The expected log prior density of weight and bias under Gaussian weights, which every approximation of them needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll_pyro.gaussian import WeightGaussian
from bll_pyro.layer import LastLayer


def log_prior(
    layer: LastLayer,
    weights: WeightGaussian,
    hyper: dict[str, Tensor],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expected log prior density of weight and bias."""
    if layer.prior.covers_bias:
        return layer.prior.expected_log_prob_of(weights)
    loc, scale = weights.loc, weights.marginal_scale()
    num_features = loc.shape[1] - int(layer.bias)
    weight_loc, weight_scale = loc[:, :num_features], scale[:, :num_features]
    draw = None
    if layer.prior.needs_noise:
        draw = torch.randn(weight_loc.shape, dtype=loc.dtype, device=loc.device, generator=generator)
    total = layer.prior.expected_log_prob(weight_loc, weight_scale, draw, **hyper)
    if not layer.bias:
        return total
    bias = loc[:, -1]
    second_moment = (bias - layer.bias_center(bias)).square() + scale[:, -1].square()
    constant = math.log(layer.bias_scale) + 0.5 * math.log(2 * math.pi)
    return total - 0.5 * second_moment.sum() / layer.bias_scale**2 - constant * len(loc)
