"""Checks of chains: divergences, trajectories cut at the maximum depth, R-hat and effective sample size by ArviZ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bll_pyro.inference.base import Trace

MAX_RHAT = 1.01  # largest R-hat without a warning (Vehtari et al. 2021)
MIN_ESS = 100  # smallest effective sample size per chain without a warning
MAX_CUT_SHARE = 0.01  # largest share of trajectories cut at the maximum depth without a warning
MAX_JUDGED = 20_000  # most elements of one site for which R-hat and ESS are computed


def check_chains(trace: Trace, draws: dict[str, Tensor], max_tree_depth: int) -> None:
    """Put R-hat and ESS ``{site: [*event]}`` into ``trace.statistics``, and warn where a check fails.

    For a site with more than 20,000 elements, these are computed for evenly spaced elements only.
    """
    stats = trace.statistics["sample_stats"]
    num_divergences, num_draws = int(stats["diverging"].sum()), stats["diverging"].numel()
    if num_divergences:
        trace.stop(
            f"NUTS: {num_divergences} of {num_draws} transitions diverged, so the draws may miss a part of the posterior; "
            "use a larger target_accept (up to 0.99) or more num_warmup, or a prior with lighter tails"
        )
    num_cut = int(stats["reached_max_treedepth"].sum())
    if num_cut > MAX_CUT_SHARE * num_draws:
        trace.stop(
            f"NUTS: {num_cut} of {num_draws} trajectories were cut at max_tree_depth={max_tree_depth}, so the draws are more "
            "correlated than necessary; use more num_warmup, or a larger max_tree_depth"
        )
    rhat, ess = rhat_and_ess(draws)
    trace.statistics |= {"rhat": rhat, "ess": ess}
    num_chains = stats["diverging"].shape[0]
    advice = "use more num_samples (and num_warmup)"
    worst = max((float(value.nan_to_num(nan=torch.inf).max()), name) for name, value in rhat.items())
    if worst[0] > MAX_RHAT:
        trace.stop(
            f"NUTS: R-hat is {worst[0]:.3f} for {worst[1]}, more than {MAX_RHAT}: the chains have not mixed; {advice}"
        )
    fewest = min((float(value.nan_to_num(nan=0.0).min()), name) for name, value in ess.items())
    if fewest[0] < MIN_ESS * num_chains:
        trace.stop(
            f"NUTS: the effective sample size is {fewest[0]:.0f} for {fewest[1]}, less than {MIN_ESS} for each of the "
            f"{num_chains} chains; {advice}"
        )


def rhat_and_ess(draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rank-normalised split R-hat and bulk effective sample size of draws ``[chain, draw, *event]``, ``{site: [*event]}``."""
    from arviz_stats.base import array_stats

    rhat, ess = {}, {}
    for name, value in draws.items():
        flat = value.flatten(2) if value.dim() > 2 else value[..., None]
        stride = -(-flat.shape[-1] // MAX_JUDGED)
        array = flat[..., ::stride].double().numpy()
        shape = value.shape[2:] if stride == 1 else (array.shape[-1],)
        with np.errstate(divide="ignore", invalid="ignore"):  # constant elements give NaN
            rhat[name], ess[name] = (
                torch.from_numpy(np.asarray(function(array, chain_axis=0, draw_axis=1))).reshape(shape)
                for function in (array_stats.rhat, array_stats.ess)
            )
    return rhat, ess
