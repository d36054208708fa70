"""Coordinates of features in scores: standardised, or of unit length.

The unit-length form is ``u = (h / s) / |h / s|``, with the scales s of the fit's frame and without its centre. Features of a
backbone or a store share one scale, so there ``u = h / |h|`` of the raw features, as in Mahalanobis++ (Müller and Hein, ICML
2025). Columns of a table have scales of their own, so their units do not matter. A row of zeros has no direction: it stays at zero.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.posterior import Posterior


def standardized(posterior: Posterior, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Features on the scale of the weights; those that the fit leaves out, since they were constant, in their own unit."""
    return replace(posterior.frame, scale=scales(posterior)).standardized(features)


def scaled(posterior: Posterior, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Features over their scales, ``h / s``, not centred."""
    return features.to(posterior.frame.center.device) / scales(posterior)


def lengths(posterior: Posterior, features: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Lengths ``|h / s|``; of a row of zeros the smallest positive number."""
    size = scaled(posterior, features).norm(dim=-1, keepdim=True)
    return size.clamp_min(torch.finfo(size.dtype).tiny)


def row_coordinates(
    posterior: Posterior, features: Float[Tensor, "N D"], normalize: bool
) -> Float[Tensor, "N D"]:
    """Rows of unit length with ``normalize``, else standardised ones."""
    if not normalize:
        return standardized(posterior, features)
    return scaled(posterior, features) / lengths(posterior, features)


def scales(posterior: Posterior) -> Float[Tensor, " D"]:
    """Scales of the frame; 1 for a feature that the fit leaves out."""
    scale = posterior.frame.scale
    return scale.where(scale.isfinite(), 1.0)
