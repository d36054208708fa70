"""One simulation: truth from the prior, targets from the truth, a fit, and the rank of the truth among its draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from bll_pyro.datatree.prior_sites import log_prior_of_draws
from bll_pyro.datatree.row_evaluation import RowEvaluator, derived_seed, in_double
from bll_pyro.features.store import Features
from bll_pyro.fitting import fit_features
from bll_pyro.inference import Inference
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import Model
from bll_pyro.observation import unobserved
from bll_pyro.posterior import Draws, Posterior
from bll_pyro.scope import isolated, one_thread

LOG_JOINT = "log_joint"


@dataclass(frozen=True, eq=False)
class Task:
    """What all simulations share; the layer has ``standardize=False`` and is in the coordinates of ``features``."""

    layer: LastLayer
    inference: Inference
    features: Float[Tensor, "N D"]
    target_shape: TargetShape
    num_draws: int
    seed: int


@dataclass(frozen=True, eq=False)
class Ranked:
    """Ranks of one simulation.

    Parameters
    ----------
    ranks
        How many draws lie below the truth, by site.
    truth
        The truth, by site.
    num_draws
        Number of draws L that it was ranked among.
    message
        What the fit warned of; empty if nothing.
    """

    ranks: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    num_draws: int
    message: str


def simulate(task: Task, number: int) -> Ranked:
    """Run simulation ``number``: it depends on the seed of the task and on its number, and on nothing else."""
    truth, targets = draw_from_model(task, derived_seed(task.seed, number, 0))
    features = Features.from_tensors(task.features, targets)
    checked = task.layer.likelihood.check_targets(targets)
    with one_thread(), unobserved():  # as in a process of its own
        posterior, trace = fit_features(
            task.layer,
            task.features,
            checked,
            task.inference,
            task.target_shape,
            derived_seed(task.seed, number, 1),
        )
        draws = posterior.sample(task.num_draws, derived_seed(task.seed, number, 2))
        return rank(
            posterior, features, truth, draws, "; ".join(trace.messages) if not trace.converged else ""
        )


def draw_from_model(task: Task, seed: int) -> tuple[Draws, Tensor]:
    """All sites ``{name: [*event]}`` and targets ``[N]`` or ``[N, T]``, by one run of the Pyro program."""
    with isolated(seed, task.features.dtype), torch.no_grad():
        model = Model(task.layer, task.features.shape[1], task.target_shape)
        nodes = poutine.trace(model).get_trace(task.features).nodes
    sites = {
        name: node["value"].detach()
        for name, node in nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not node["name"].startswith("_")
    }
    targets = sites.pop("y")
    # plates are sites too
    sites = {name: value for name, value in sites.items() if name != "data"}
    if not task.target_shape and targets.dim() == 2:
        targets = targets.squeeze(-1)
    return sites, targets


def rank(posterior: Posterior, features: Features, truth: Draws, draws: Draws, message: str) -> Ranked:
    """Rank the truth among the draws, number by number, and so the joint density of truth and data."""
    shown = posterior.global_sites.to_user({name: value[None, None] for name, value in truth.items()})
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    ranks = {name: (flat[name] < shown[name][0].to(flat[name])).sum(0).numpy() for name in flat}
    num_draws = len(flat["weight"])
    both = {
        name: torch.cat([shown[name].to(value), value.flatten(0, 1)[None]], 1)
        for name, value in draws.items()
    }
    density = log_joint(posterior, features, both)[0]
    ranks[LOG_JOINT] = np.asarray((density[1:] < density[0]).sum())
    truths: dict[str, Any] = {name: shown[name][0, 0].numpy() for name in flat}
    return Ranked(ranks, truths | {LOG_JOINT: np.asarray(density[0])}, num_draws, message)


def log_joint(posterior: Posterior, features: Features, draws: Draws) -> Float[np.ndarray, "chain draw"]:
    """``log p(y, all sites)`` of draws, ``[chain, draw]``: a test quantity that sees the data (Modrak et al. 2023)."""
    scored = in_double(posterior)
    assert features.targets is not None
    checked = posterior.layer.likelihood.check_targets(features.targets)
    rows = RowEvaluator(scored, features.tensor(), checked, features.targets.numpy())
    by_row = rows.log_likelihood(draws)
    prior = sum(value.double().numpy() for value in log_prior_of_draws(scored, draws).values())
    return np.asarray(by_row.reshape(*by_row.shape[:2], -1).sum(-1) + prior)
