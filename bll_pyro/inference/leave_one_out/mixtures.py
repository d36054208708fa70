"""Leave-one-out of the linear Gaussian model with unknown noise: exact for each value of the noise, and over all of them."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from bll_pyro.gaussian import OutputMixture
from bll_pyro.inference.leave_one_out.predicted import PredictedDensity
from bll_pyro.inference.leave_one_out.row_by_row import MAX_SHARE
from bll_pyro.inference.row_targets import Targets, values_of, weight_of


def leave_out_of_mixture(
    outputs: OutputMixture, predicted: PredictedDensity, targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """The linear Gaussian model, exact given each value s of the noise, and over the values exact again.

    With leverage ``a = v / s^2`` the density of the row without itself is Normal with residual ``(y - m) / (1 - a)`` and
    variance ``s^2 / (1 - a)``; the noise without the row has the weights ``w_s / p_s``. A recalibration multiplies the part of the
    variance that is noise, ``s^2``, and not the weights.
    """
    weight, values = weight_of(targets), values_of(targets)
    square = outputs.noise[:, None].square()
    known = outputs.scale.square() / square
    leverage = known if weight is None else weight[:, None] * known
    rest = (1 - leverage).clamp_min(1 - MAX_SHARE)
    residual, epistemic = (values - outputs.loc) / rest, square * known / rest
    factor = predicted.noise_factor

    def log_prob(factor: float) -> Tensor:
        variance = factor**2 * square + epistemic
        return -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi))

    given, log_weights = log_prob(1.0), outputs.weights.log()[:, None]
    if weight is None:  # a weighted row leaves the noise as it is
        log_weights = (log_weights - given).log_softmax(0)
    wanted = given if factor == 1.0 else log_prob(factor)
    elpd = (log_weights + wanted).logsumexp(0).sum(-1)
    return elpd, outputs.average(leverage).amax(-1), predicted.log_prob(outputs, values, {}, 1)


def mixture_without(outputs: OutputMixture, targets: Targets) -> OutputMixture:
    """Outputs of rows without themselves given each value of the noise, which keeps the weights that all rows give it."""
    weight, values = weight_of(targets), values_of(targets)
    known = outputs.scale.square() / outputs.noise[:, None].square()
    rest = (1 - (known if weight is None else weight[:, None] * known)).clamp_min(1 - MAX_SHARE)
    return replace(outputs, loc=values - (values - outputs.loc) / rest, scale=outputs.scale / rest.sqrt())
