"""Whether chains can be trusted: divergences, trees that were cut short, R-hat and effective sample size by ArviZ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bll_pyro.inference.base import Trace

MAX_RHAT = 1.01  # Vehtari et al. 2021
MIN_ESS = 100  # for each chain
MAX_CUT_SHARE = 0.01
MAX_JUDGED = 20_000  # single numbers for which R-hat and ESS are computed


def check_chains(trace: Trace, draws: dict[str, Tensor], max_tree_depth: int) -> None:
    """Compute R-hat and ESS ``{site: [*event]}`` into ``trace.statistics``, and warn of what did not go well.

    Of a layer with more than 20,000 weights, evenly spaced ones are judged.
    """
    stats = trace.statistics["sample_stats"]
    num_divergences, num_draws = int(stats["diverging"].sum()), stats["diverging"].numel()
    if num_divergences:
        trace.stop(
            f"NUTS: {num_divergences} of {num_draws} transitions diverged, so that a part of the posterior may be missing; "
            "use a larger target_accept (up to 0.99) or more num_warmup, or a prior with lighter tails"
        )
    num_cut = int(stats["reached_max_treedepth"].sum())
    if num_cut > MAX_CUT_SHARE * num_draws:
        trace.stop(
            f"NUTS: {num_cut} of {num_draws} trajectories were cut at max_tree_depth={max_tree_depth}, so that draws are "
            "closer together than they need be; use more num_warmup, or a larger max_tree_depth"
        )
    rhat, ess = rhat_and_ess(draws)
    trace.statistics |= {"rhat": rhat, "ess": ess}
    num_chains = stats["diverging"].shape[0]
    advice = "use more num_samples (and num_warmup)"
    worst = max((float(value.nan_to_num(nan=torch.inf).max()), name) for name, value in rhat.items())
    if worst[0] > MAX_RHAT:
        trace.stop(
            f"NUTS: R-hat is {worst[0]:.3f} for {worst[1]}, more than {MAX_RHAT}: chains disagree; {advice}"
        )
    fewest = min((float(value.nan_to_num(nan=0.0).min()), name) for name, value in ess.items())
    if fewest[0] < MIN_ESS * num_chains:
        trace.stop(
            f"NUTS: the effective sample size is {fewest[0]:.0f} for {fewest[1]}, less than {MIN_ESS} for each of the "
            f"{num_chains} chains; {advice}"
        )


def rhat_and_ess(draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rank-normalised split R-hat, and bulk effective sample size, of every number of draws ``[chain, draw, *event]``."""
    from arviz_stats.base import array_stats

    rhat, ess = {}, {}
    for name, value in draws.items():
        flat = value.flatten(2) if value.dim() > 2 else value[..., None]
        stride = -(-flat.shape[-1] // MAX_JUDGED)
        array = flat[..., ::stride].double().numpy()
        shape = value.shape[2:] if stride == 1 else (array.shape[-1],)
        with np.errstate(divide="ignore", invalid="ignore"):  # numbers that never move come out as NaN
            rhat[name], ess[name] = (
                torch.from_numpy(np.asarray(function(array, chain_axis=0, draw_axis=1))).reshape(shape)
                for function in (array_stats.rhat, array_stats.ess)
            )
    return rhat, ess
