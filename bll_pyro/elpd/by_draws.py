"""Leave-one-out of posteriors that are draws: PSIS by ArviZ, and with its weights the density of a recalibrated prediction.

The weights of the draws without a row, ``1 / p(y_n | draw)`` smoothed, are those of the model: a recalibration changes what
is predicted with a draw, and not which draws the rows left over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.elpd.estimates import of_all, of_some
from bll_pyro.gaussian import OutputDraws
from bll_pyro.inference.leave_one_out.predicted import PredictedDensity
from bll_pyro.observation import stage
from bll_pyro.prediction.recalibration import NoiseFactor, PredictiveTemperature
from bll_pyro.scope import without_warnings

if TYPE_CHECKING:
    import xarray as xr
    from arviz_stats.utils import ELPDDataLOO

    from bll_pyro.fitting import Fit
    from bll_pyro.fitting.labelled import LabelledRows

NUMBERS_AT_ONCE = 2**22  # draws x rows x outputs


def density_of(fit: Fit) -> PredictedDensity:
    """What the predictions of a fit say of a row given its outputs."""
    likelihood, found = fit.posterior.layer.likelihood, fit.recalibration
    if isinstance(found, PredictiveTemperature):
        return PredictedDensity(likelihood, temperature=found.temperature)
    if isinstance(found, NoiseFactor):
        return PredictedDensity(likelihood, noise_factor=found.factor)
    return PredictedDensity(likelihood)


def by_draws(fit: Fit, rows: LabelledRows, num_rows: int | None, seed: int) -> ELPDDataLOO:
    """PSIS on the draws' own log likelihood; the targets of a row are left out together."""
    import arviz_stats as azs
    import xarray as xr

    from bll_pyro.datatree import to_datatree

    remedy = "with a posterior that is draws use none, or an inference with a Gaussian posterior, e.g. bll.Laplace() or bll.SVI()"
    rows.columns.refused("loo", weight=remedy)
    tree = to_datatree(fit.head, rows.data, prior=False, posterior_predictive=False, log_prior=False)
    log_likelihood = tree["log_likelihood"]["y"]
    by_target = [dim for dim in log_likelihood.dims if dim not in ("chain", "draw", "obs")]
    summed = log_likelihood.sum(by_target)
    tree["log_likelihood"] = xr.DataTree(xr.Dataset({"y": summed}))
    reff = 1.0 if fit.posterior.independent_draws else None
    some = num_rows is not None and num_rows < len(rows.targets)
    with stage("leave-one-out by draws"):
        if some:
            result = azs.loo_subsample(tree, num_rows, pointwise=True, reff=reff, seed=seed)
            chosen = np.asarray(result.loo_subsample_observations)
        else:
            result, chosen = azs.loo(tree, pointwise=True, reff=reff), np.arange(len(rows.targets))
    if fit.recalibration is None:
        return result
    weights = result.log_weights
    if some:
        tree["log_likelihood"] = xr.DataTree(xr.Dataset({"y": summed.isel(obs=chosen)}))
        with without_warnings("Estimated shape parameter of Pareto"):  # said above
            weights = azs.loo(tree, pointwise=True, reff=reff).log_weights
    elpd = _recalibrated(fit, rows, chosen, weights)
    whole = fit.head.predict(rows.data).log_prob(rows.labels).double().cpu().numpy()
    return replace(result, **(of_some(chosen, elpd, whole) if some else of_all(elpd, whole)))


def _recalibrated(
    fit: Fit, rows: LabelledRows, chosen: Int[np.ndarray, " n"], log_weights: xr.DataArray
) -> Float[np.ndarray, " n"]:
    """Log density ``[n]`` of chosen rows by the recalibrated prediction, with the weights of the draws without each."""
    posterior, said = fit.posterior, density_of(fit)
    frame, real = posterior.frame, posterior.layer.likelihood.real_valued
    noise = posterior.noise(0)
    flat = torch.as_tensor(log_weights.transpose("chain", "draw", ...).values.reshape(-1, len(chosen)))
    size = max(1, NUMBERS_AT_ONCE // (len(flat) * posterior.num_outputs))
    found = []
    for part, log_weight in zip(torch.as_tensor(chosen).split(size), flat.split(size, 1), strict=True):
        values = posterior.outputs(rows.features[part]).draws(0)
        targets: Tensor = frame.targets(rows.targets[part]) if real else rows.targets[part]
        given = [
            (OutputDraws(one[None]), {name: value[s, None, None] for name, value in noise.items()})
            for s, one in enumerate(values)
        ]
        found.append(said.weighted_log_prob(given, log_weight.to(values), targets, 1))
    spread = frame.log_target_scale if real else 0.0
    return torch.cat(found).double().cpu().numpy() - spread
