"""Draws of a guide without a closed form (flows, custom guides), and their log density where it is defined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from bll_pyro.guides.custom import is_data


@torch.no_grad()
def draw_guide(
    guide: Any, arguments: tuple[Any, ...], free_sizes: Mapping[str, int], num_draws: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Draws ``{site: [1, S, *event]}`` of the latent sites, one call of the guide each, and ``log q [1, S]`` in nats.

    Pyro's autoguides sample auxiliary variables and set the sites to functions of them, each as a point mass that carries
    the log Jacobian. The product of all densities is that of the sites if the auxiliary variables and the sites have the
    same number of dimensions. With more, the surplus would have to be integrated out, with fewer there is no density:
    ``log q`` is None.

    Parameters
    ----------
    free_sizes
        Number of unconstrained dimensions of each latent site.
    """
    collected: dict[str, list[Tensor]] = {name: [] for name in free_sizes}
    densities: list[Tensor] = []
    for _ in range(num_draws):
        trace = poutine.trace(guide).get_trace(*arguments)
        for name, value in trace.nodes["_RETURN"]["value"].items():
            collected[name].append(value)
        log_q = _log_density(trace, free_sizes)
        if log_q is not None:
            densities.append(log_q)
    draws = {name: torch.stack(parts)[None] for name, parts in collected.items()}
    return draws, torch.stack(densities)[None] if len(densities) == num_draws else None


def _log_density(trace: Any, free_sizes: Mapping[str, int]) -> Tensor | None:
    trace.compute_log_prob()
    sites = {name: site for name, site in trace.iter_stochastic_nodes() if not is_data(site)}
    auxiliary = sum(site["value"].numel() for name, site in sites.items() if name not in free_sizes)
    determined = sum(
        size for name, size in free_sizes.items() if name in sites and _is_delta(sites[name]["fn"])
    )
    if auxiliary != determined:
        return None
    return torch.stack([site["log_prob_sum"] for site in sites.values()]).sum()


def _is_delta(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__ == "Delta"
