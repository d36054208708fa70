"""Chains of Pyro's NUTS from a log density, in parallel processes or one after another.

A chain depends on its seed only: it runs in one thread, with its own random state, in any process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from bll_pyro.checkpoint.folder import part
from bll_pyro.inference.nuts.counting import Counter, counted
from bll_pyro.inference.nuts.density import LogDensity
from bll_pyro.inference.nuts.recording import RecordingNUTS
from bll_pyro.observation import stage
from bll_pyro.ranks import ALONE, Processes
from bll_pyro.scope import isolated, one_thread, without_validation

MAX_DENSE_GLOBALS = 50  # most global unknowns that share a full mass matrix
FIRST_STEP = 0.5  # initial step size for one weight; it falls with the fourth root of their number
INTEGERS = ("n_steps", "tree_depth")  # names of the integer statistics


@dataclass(frozen=True)
class ChainSettings:
    """Length and accuracy of sampling; the fields are documented in :class:`bll_pyro.NUTS`."""

    num_warmup: int
    num_samples: int
    target_accept: float
    max_tree_depth: int


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain's draws: weights ``[S, K, P]``, global unknowns ``[S, U]``, and statistics ``[S]``."""

    weights: np.ndarray
    u: np.ndarray
    statistics: dict[str, np.ndarray]
    num_gradients: int

    @classmethod
    def kept(cls, saved: dict[str, Any]) -> Self:
        """A chain of a checkpoint, which keeps tensors."""
        statistics = {name: values.numpy() for name, values in saved["statistics"].items()}
        return cls(saved["weights"].numpy(), saved["u"].numpy(), statistics, saved["num_gradients"])


def run_chains(
    density: LogDensity,
    seed: int,
    num_chains: int,
    settings: ChainSettings,
    num_processes: int,
    ranks: Processes = ALONE,
) -> list[Chain]:
    """Run chains with seeds derived from ``seed``, in up to ``num_processes`` processes; a checkpoint keeps each that has ended.

    Ranks share the chains, and all get all of them.
    """
    seeds = [int(np.random.SeedSequence((seed, index)).generate_state(1)[0]) for index in range(num_chains)]
    own = seeds[ranks.rank :: ranks.size]
    parts = {each: part(f"chain-{seeds.index(each) + 1}") for each in own}
    chains = {
        each: Chain.kept(saved[0])
        for each, one in parts.items()
        if one is not None and (saved := one.saved())
    }
    left = [each for each in own if each not in chains]
    num_steps, num_processes = settings.num_warmup + settings.num_samples, min(num_processes, len(left))

    def take(found: tuple[int, Chain]) -> None:
        each, chain = found
        chains[each], keeper = chain, parts[each]
        if keeper is not None:
            keeper.finish(vars(chain))

    with (
        stage("chains", num_steps * len(left)) as steps,
        counted(steps, len(left), settings.num_warmup, num_processes > 1) as counts,
    ):
        counts.follow(partial(run_each, density, left, settings, num_processes, counts.counters), take)
    found = {each: chain for some in ranks.gather(chains) for each, chain in some.items()}
    return [found[each] for each in seeds]


def run_each(
    density: LogDensity,
    seeds: list[int],
    settings: ChainSettings,
    num_processes: int,
    counters: Sequence[Counter | None],
) -> Iterator[tuple[int, Chain]]:
    """Seeds and their chains, each when it has ended."""
    given = zip(seeds, counters, strict=True)
    if num_processes <= 1:
        return (run_seed(density, each, settings, count) for each, count in given)
    from joblib import Parallel, delayed, parallel_config

    # "c": the processes read large arrays from one memory map, and write to private copies of its pages
    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=num_processes, mmap_mode="c", return_as="generator_unordered")
        found: Iterator[tuple[int, Chain]] = pool(
            delayed(run_seed)(density, each, settings, count) for each, count in given
        )
        return found


def run_seed(
    density: LogDensity, seed: int, settings: ChainSettings, count: Counter | None
) -> tuple[int, Chain]:
    """A chain beside its seed."""
    return seed, run_chain(density, seed, settings, count)


def run_chain(density: LogDensity, seed: int, settings: ChainSettings, count: Counter | None = None) -> Chain:
    """Warm up and sample one chain, whose transitions are counted."""
    device = density.coordinates.loc.device
    with isolated(seed, density.dtype), one_thread(), without_validation():
        density.num_calls = 0
        start = initial_state(density, device)
        num_globals = density.global_sites.num
        kernel = RecordingNUTS(
            potential_fn=density,
            step_size=FIRST_STEP * len(start["weights"]) ** -0.25,
            target_accept_prob=settings.target_accept,
            max_tree_depth=settings.max_tree_depth,
            full_mass=[("globals",)] if 0 < num_globals <= MAX_DENSE_GLOBALS else False,
        )
        potentials: list[float] = []

        def after_transition(kernel: RecordingNUTS, params: Any, phase: str, index: int) -> None:
            if phase == "Sample":
                potentials.append(float(kernel._potential_energy_last))
            if count is not None:
                count(len(kernel._divergences))

        mcmc = MCMC(
            kernel, num_samples=settings.num_samples, warmup_steps=settings.num_warmup,
            initial_params=start, disable_progbar=True, hook_fn=after_transition,
        )  # fmt: skip
        mcmc.run()
        num_gradients = density.num_calls
        return collect(density, mcmc, potentials, num_gradients)


@torch.no_grad()
def collect(density: LogDensity, mcmc: MCMC, potentials: list[float], num_gradients: int) -> Chain:
    """Transform the states of a finished run to weights and global unknowns, and its statistics to arrays."""
    states = mcmc.get_samples()
    num_draws = len(states["weights"])
    weights = torch.empty(num_draws, *density.coordinates.loc.shape, dtype=density.dtype)
    u = torch.empty(num_draws, density.global_sites.num, dtype=torch.float64)
    log_stretches = np.empty(num_draws)
    for index in range(num_draws):
        place = density.place({name: values[index] for name, values in states.items()})
        u[index], weights[index], log_stretches[index] = place[0], place[1], float(place[2])
    diagnostics = mcmc._diagnostics[0]
    statistics = {
        name: np.asarray(values, dtype=np.int64 if name in INTEGERS else None)
        for name, values in diagnostics["statistics"].items()
    }
    statistics["diverging"] = np.zeros(num_draws, dtype=bool)
    statistics["diverging"][np.asarray(diagnostics["divergences"], dtype=int)] = True
    statistics["lp"] = -np.asarray(potentials) - log_stretches
    return Chain(weights.numpy(), u.numpy(), statistics, num_gradients)


def initial_state(density: LogDensity, device: torch.device) -> dict[str, Tensor]:
    """A draw from the Gaussian approximation, so that chains start at different typical points.

    It is halved towards the mean, up to ten times, until the log density is finite.

    Raises
    ------
    ValueError
        If the log density is not finite at any of these points.
    """
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    drawn = {name: torch.randn(size, **options) for name, size in density.shape.items()}
    for _ in range(10):
        if bool(torch.isfinite(density(drawn))):
            return drawn
        drawn = {name: value / 2 for name, value in drawn.items()}
    raise ValueError(
        "NUTS: expected a finite log density near the mode, got infinity or NaN; look for extreme features or targets, use "
        "standardize=True, or features in double precision"
    )
