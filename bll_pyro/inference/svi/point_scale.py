"""A learned prior scale for a point: that of the highest evidence at the mode.

A point has no evidence, and the joint density of weights and scale grows without bound as both shrink together. Laplace's
approximation at the mode has one (MacKay 1992): with the mode m at a scale tau and the curvature there, whose inverse are the
variances ``s^2`` (diagonal, in the principal axes of the features where the prior allows them), the next tau is the best one for
``N(m, s^2)``, in closed form for a Normal, ``tau^2 = mean(m^2 + s^2)``. Its fixed point is searched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi.gaussian_start import followed
from bll_pyro.inference.svi.side_by_side import principal
from bll_pyro.layer import LastLayer
from bll_pyro.model import Model

MAX_ROUNDS = 30
CLOSE = 0.01  # largest relative change of a scale in a round at which the search ends
SMALLEST = 1e-3  # of a scale, as a share of where it starts: rows in which the features explain nothing


@torch.no_grad()
def scale_of_point(layer: LastLayer, model: Model, rows: DesignRows) -> dict[str, Tensor] | None:
    """Learned scales at the highest evidence of the mode; None where there are none, or the prior has no density."""
    if not (layer.prior.has_density and model.learned):
        return None
    layer, rows = principal(layer, rows)
    learned = first = {name: value.detach() for name, value in model.learned.items()}
    sites, num_outputs, num_features = model.global_sites, model.num_outputs, rows.frame.num_features
    for _ in range(MAX_ROUNDS):
        with torch.enable_grad():
            start = warm_start(layer, sites, rows, num_outputs, learned)
        found = followed(layer, start.loc, start.scale, learned, num_features)
        found = {name: value.maximum(SMALLEST * first[name]) for name, value in found.items()}
        change = max(float((found[name] / value).log().abs().max()) for name, value in learned.items())
        learned = found
        if change < math.log1p(CLOSE):
            break
    return learned
