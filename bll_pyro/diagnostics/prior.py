"""The prior: whether the posterior is improbable under it, and whether the result depends on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from bll_pyro.datatree.prior_sites import log_prior_of_draws, sample_prior
from bll_pyro.datatree.row_evaluation import in_double
from bll_pyro.diagnostics.optimisation import prior_slope
from bll_pyro.diagnostics.study import MIN_DRAWS, Study
from bll_pyro.diagnostics.verdicts import Check
from bll_pyro.gaussian import Delta
from bll_pyro.gaussian.precision import covariance_times
from bll_pyro.inference.leave_one_out.row_by_row import row_blocks
from bll_pyro.scope import own_modes

MAX_PRIOR_NUMBERS = 2e7
NUM_PRIOR_DRAWS = 1000
CONFLICT_LIMITS = (
    0.95,
    0.99,
)  # share of prior draws that are more probable under the prior than the posterior's draws are
SENSITIVITY_LIMIT = 0.05  # Kallioinen et al. 2024
SHIFT_LIMIT = 0.3  # standard deviations; for a Normal the same as the limit above
MAX_SCALING_NOISE = 0.02
MAX_JUDGED = 200  # weights whose sensitivity is computed
COMPARE = "fits with priors twice as wide and half as wide (bll.compare): do they change your conclusions?"
WIDER = (
    "a wider prior, one with a learned scale (scale=None), or one with heavier tails (StudentT, Horseshoe)"
)


def conflict(study: Study) -> Check:
    """Whether weights of the posterior are improbable under the prior.

    For each site the posterior mean of ``-log p(site)`` is compared with its distribution under the prior (cf. Evans and
    Moshonov 2006). If prior and data agree, that mean lies within the distribution: it has the same expectation and a smaller
    variance.
    """
    name, posterior = "prior against posterior", study.posterior
    num_draws = int(min(NUM_PRIOR_DRAWS, MAX_PRIOR_NUMBERS / study.num_weights))
    if num_draws < MIN_DRAWS:
        return Check.skipped(
            name, f"{study.num_weights} weights are too many: memory allows too few draws from the prior"
        )
    if not posterior.layer.prior.has_density:
        return Check.skipped(name, "the prior is a program without a density of its own")
    scored = in_double(posterior)
    prior = log_prior_of_draws(scored, sample_prior(posterior, num_draws, study.seed))
    draws = posterior.sample(min(num_draws, study.num_draws), study.seed)
    own = log_prior_of_draws(scored, draws)
    found = {}
    for site, values in prior.items():
        surprise, typical = -float(own[site].mean()), -values.double().flatten()
        found[site] = float((typical < surprise).double().mean())
    worst = max(found, key=found.__getitem__)
    finding = (
        f"{worst} is less probable under the prior than {100 * found[worst]:.1f} % of what the prior draws"
        if found[worst] > 0.9
        else "the posterior lies where the prior expects it"
    )
    remedy = WIDER if worst == "weight" else f"another prior of {worst}"
    return Check.graded(name, found[worst], CONFLICT_LIMITS, finding, remedy)


def sensitivity(study: Study) -> Check:
    """Power scaling of the prior: by ArviZ on the draws, or by linear response where the draws would be too noisy."""
    name = "prior sensitivity"
    if study.gaussian is not None and isinstance(study.gaussian.latents.weights, Delta):
        return Check.skipped(name, "a point estimate has no draws to weight")
    if study.stuck:
        return Check.skipped(name, study.stuck)
    if study.tree is not None and _noise_of_scaling(study) <= MAX_SCALING_NOISE:
        return _by_importance(study, name)
    if study.gaussian is None:
        return Check.skipped(name, "too few draws for so many weights, and the posterior is not one Gaussian")
    return _by_response(study, name)


def _noise_of_scaling(study: Study) -> float:
    """Approximate sensitivity that ArviZ finds by chance, where the true one is zero.

    Weights of the importance sampling have the relative standard deviation ``0.01 sd(log p(W))``, which moves a distribution
    function by that over ``2 sqrt(S)`` at random, and a distance is divided by ``2 log2(1.01)``.
    """
    assert study.tree is not None
    values = np.sum([value.to_numpy() for value in study.tree["log_prior"].data_vars.values()], axis=0)
    return 0.7 * float(values.std()) / math.sqrt(values.size)


def _by_importance(study: Study, name: str) -> Check:
    """Kallioinen, Paananen, Buerkner and Vehtari (2024)."""
    import logging

    import arviz_stats as azs
    import xarray as xr

    assert study.tree is not None
    tree = study.tree
    judged: dict[str, Any] = {}
    for site, values in tree["posterior"].data_vars.items():
        flat = values.transpose("chain", "draw", ...).values
        flat = flat.reshape(*flat.shape[:2], -1)
        kept = flat[..., :: -(-flat.shape[-1] // MAX_JUDGED)]
        judged[str(site)] = (("chain", "draw", f"{site}_number"), kept)
    groups = {group: tree[group].to_dataset() for group in ("log_likelihood", "log_prior")}
    part = xr.DataTree.from_dict({"posterior": xr.Dataset(judged), **groups})
    logger = logging.getLogger("arviz_stats.psense")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the check reports it
    try:
        table = azs.psense_summary(part, threshold=SENSITIVITY_LIMIT, round_to=6)
    finally:
        logger.setLevel(level)
    by_prior, by_data = table["prior"].to_numpy(float), table["likelihood"].to_numpy(float)
    moved = by_prior > SENSITIVITY_LIMIT
    largest = float(np.nanmax(by_prior))
    finding = (
        f"{int(moved.sum())} of {len(table)} weights and other unknowns move with the strength of the prior (largest sensitivity "
        f"{largest:.3f})"
    )
    both = moved & (by_data > SENSITIVITY_LIMIT)
    if both.any():
        finding += f"; {int(both.sum())} move with that of the likelihood too: prior and data are in conflict"
    return Check.graded(name, largest, (SENSITIVITY_LIMIT, math.inf), finding, COMPARE)


@own_modes(gradients=False)
def _by_response(study: Study, name: str) -> Check:
    """Shift of the outputs when the log prior is doubled, ``log(2) H P^-1 dE_q[log p(W)]/dm``, in their standard deviations."""
    slope = prior_slope(study)
    step = math.log(2) * covariance_times(study.response.weights, slope.to(study.response.weights.loc))
    shifts = []
    for design, _ in row_blocks(study.rows, study.chosen, study.row_by_row.row_size):
        shifts.append((design @ step.mT) / study.row_by_row.weights.outputs(design).variance.sqrt())
    size = float(torch.cat(shifts).square().mean().sqrt())
    finding = (
        f"with a prior twice as strong the outputs of a row move by {size:.2g} of their standard deviations"
    )
    if study.posterior.learned:
        finding += " (at the learned scale; a given one half as wide would be four times as strong)"
    return Check.graded(name, size, (SHIFT_LIMIT, math.inf), finding, COMPARE)
