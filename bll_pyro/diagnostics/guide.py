"""Distance of the guide from the posterior: k-hat of their density ratio, and nats of the ELBO."""

from __future__ import annotations

import math

import numpy as np

from bll_pyro.diagnostics.study import MIN_DRAWS, Study
from bll_pyro.diagnostics.verdicts import Check, Grade
from bll_pyro.gaussian import Delta
from bll_pyro.gaussian.precision import weights_in_double
from bll_pyro.guides import FullRank
from bll_pyro.inference.svi.svi import SVI
from bll_pyro.scope import generator, own_modes

KHAT_LIMITS = (0.7, 1.0)  # Yao et al. 2018; Vehtari et al. 2024
FEW_UNKNOWNS = 100  # with more, k-hat is high for good guides too (Yao et al. 2018)
GAP_LIMITS = (0.1, 0.5)  # nats a weight: two weights with correlation 0.57, 0.93
NUM_DRAWS = 256
EQUAL_RATIOS = 1e-3  # nats
RICHER = "a guide with correlations: BlockDiagonal(), FullRank() or LowRank(rank)"


def khat(study: Study) -> Check:
    """Pareto k-hat of ``p(y, weights) / q(weights)`` over draws of the guide (Yao, Vehtari, Simpson and Gelman 2018)."""
    name = "k-hat of the guide"
    if not study.posterior.independent_draws:
        return Check.skipped(name, "draws of a Markov chain are draws of the posterior itself")
    if study.tree is None:
        return Check.skipped(
            name,
            f"{MIN_DRAWS} draws of {study.num_weights} weights on {len(study.targets)} rows cost too much, and with this many "
            "weights k-hat is high for good guides too",
        )
    stats = study.tree["sample_stats"]
    if "log_q" not in stats:
        return Check.skipped(name, str(study.tree.attrs.get("log_q_missing", "the posterior has no density")))
    from arviz_stats.base import array_stats

    log_ratio = np.ravel(stats["log_p"].to_numpy() - stats["log_q"].to_numpy())
    equal = (
        float(np.ptp(log_ratio)) < EQUAL_RATIOS
    )  # an exact posterior: no tail to fit a Pareto distribution to
    value = 0.0 if equal else float(array_stats.psislw(-log_ratio)[1])
    finding = f"k-hat {value:.2f} of the joint density of {study.num_weights} weights"
    if study.num_weights > FEW_UNKNOWNS:
        why = f"{finding}: with so many, it is high for good guides too; the gap below and leave-one-out in output space say more"
        return Check(name, Grade.NOT_CHECKED, why, value, KHAT_LIMITS)
    remedy = f"{RICHER}; bll.NUTS() as a referee; leave-one-out in output space does not depend on it"
    return Check.graded(name, value, KHAT_LIMITS, finding, remedy)


@own_modes(gradients=False)
def gap(study: Study) -> Check:
    """What correlations that the guide cannot express cost: the ELBO of a full-rank guide less its own, nats a weight.

    By linear response (Giordano, Broderick and Jordan 2018) a full-rank guide with these means would be ``N(m, P^-1)``, and the
    gap is ``KL(q || N(m, P^-1))``, here over draws of q. No second fit is made.
    """
    name, posterior = "gap to full rank", study.gaussian
    if posterior is None:
        return Check.skipped(name, "the posterior is not one Gaussian over the weights")
    if isinstance(posterior.latents.weights, Delta):
        return Check(
            name, Grade.LOOK, "a point estimate has no covariance: it says nothing about the uncertainty of the weights",
            math.inf, GAP_LIMITS, "a guide with a covariance, such as Diagonal()",
        )  # fmt: skip
    if not study.response.ties:
        return Check.skipped(name, "the layer is too large for the correlations between its outputs")
    nats = nats_to_full_rank(study)
    each = max(nats, 0.0) / study.num_weights
    finding = f"the ELBO is {nats:.3g} nats below that of a full-rank guide, {each:.2g} for each of {study.num_weights} weights"
    remedy = f"{RICHER}; or Diagonal(principal_axes=True) where the prior allows it"
    inference = study.fit.inference
    if isinstance(inference, SVI) and isinstance(inference.guide, FullRank):
        remedy = (
            "more steps (num_epochs): a full-rank guide can express the correlations, but has not converged"
        )
    if not isinstance(inference, SVI):
        remedy = "bll.SVI() with a guide that has correlations, or bll.NUTS() as a referee"
    return Check.graded(name, each, GAP_LIMITS, finding, remedy)


def nats_to_full_rank(study: Study) -> float:
    """``KL(q || N(m, P^-1))`` in nats."""
    own, full = weights_in_double(study.row_by_row.weights), weights_in_double(study.response.weights)
    draws = own.rsample(NUM_DRAWS, generator(study.seed, own.loc.device))
    return float((own.log_prob(draws) - full.log_prob(draws)).mean())
