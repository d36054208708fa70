"""Convergence of Markov chains: R-hat, effective sample size, divergences. Not computed for independent draws."""

from __future__ import annotations

import math

from bll_pyro.diagnostics.study import Study
from bll_pyro.diagnostics.verdicts import Check
from bll_pyro.inference.nuts.chain_checks import MAX_RHAT, MIN_ESS, rhat_and_ess
from bll_pyro.inference.nuts.nuts import NUTS
from bll_pyro.posterior import DrawsPosterior

MORE_DRAWS = "more num_warmup and num_samples"


def chains(study: Study) -> list[Check]:
    """R-hat, ESS and divergences of the chains."""
    posterior = study.posterior
    if not isinstance(posterior, DrawsPosterior) or posterior.independent_draws:
        return [Check.skipped("chains", "draws are independent: R-hat, ESS and divergences have no meaning")]
    trace = study.fit.trace
    rhat, ess = trace.rhat, trace.ess
    if rhat is None or ess is None:
        rhat, ess = rhat_and_ess(posterior.draws)
    worst, where = max((float(v.nan_to_num(nan=math.inf).max()), k) for k, v in rhat.items())
    fewest, site = min((float(v.nan_to_num(nan=0.0).min()), k) for k, v in ess.items())
    num_chains = next(iter(posterior.draws.values())).shape[0]
    enough = MIN_ESS * num_chains
    checks = [
        Check.graded(
            "R-hat", worst, (MAX_RHAT, 1.05), f"R-hat is at most {worst:.3f} (in {where})", MORE_DRAWS
        ),
        Check.graded(
            "effective draws",
            enough / max(fewest, 1e-9),
            (1.0, 4.0),
            f"the smallest effective sample size is {fewest:.0f} (in {site}); at least {enough} are needed",
            MORE_DRAWS,
        ),
    ]
    if "diverging" in trace.by_draw:
        diverging = trace.by_draw["diverging"]
        number, share = int(diverging.sum()), float(diverging.double().mean())
        target = study.fit.inference.target_accept if isinstance(study.fit.inference, NUTS) else math.nan
        checks.append(
            Check.graded(
                "divergences",
                share,
                (0.0, 0.01),
                f"{number} of {diverging.numel()} transitions diverged",
                f"a larger target_accept (now {target:g}, up to 0.99) or a prior with lighter tails: the chains may "
                "have missed a part of the posterior",
            )
        )
    return checks
