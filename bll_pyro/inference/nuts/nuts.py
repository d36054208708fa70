"""NUTS: draws from the posterior by Hamiltonian dynamics, in coordinates whitened by a Gaussian approximation."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from bll_pyro.checks import count, share
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.nuts.approximation import approximate
from bll_pyro.inference.nuts.augmented import augmented
from bll_pyro.inference.nuts.chain_checks import check_chains
from bll_pyro.inference.nuts.chains import Chain, ChainSettings, run_chains
from bll_pyro.inference.nuts.coordinates import coordinates
from bll_pyro.inference.nuts.density import LogDensity
from bll_pyro.inference.nuts.row_terms import row_terms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.posterior import Draws, DrawsPosterior, Posterior

MAX_BYTES = 8 * 2**30  # largest memory of the draws, in bytes


@dataclass(frozen=True, eq=False)
class NUTS(Inference):
    """The No-U-Turn sampler (Hoffman and Gelman 2014; Betancourt 2017) of Pyro on cached features.

    Its error vanishes with the number of draws, so it is the reference for the other inferences. Chains run in parallel
    processes; the draws depend on the seed, not on the number of processes. The coordinates are whitened by a Gaussian
    approximation of the posterior: the features of a network are strongly correlated, and a sampler in the weights
    themselves would need very small steps.

    A learned prior scale (``scale=None``) has no posterior: it is fixed at the maximum of Laplace's evidence (for priors
    that are not Gaussian, of a bound of the evidence under a Gaussian approximation). With
    ``priors.HierarchicalNormal`` the prior scale has a prior of its own and is sampled.

    Parameters
    ----------
    num_warmup
        Transitions of each chain that adapt step size and mass matrix; they are not kept.
    num_samples
        Draws of each chain.
    num_chains
        Number of chains.
    target_accept
        Mean acceptance probability, between 0 and 1, that the step size is adapted to. A larger one takes smaller steps,
        which are slower and diverge less where the curvature of the posterior varies.
    max_tree_depth
        Largest number of doublings of a trajectory.
    num_processes
        Number of parallel processes; None (default) takes one for each chain, up to the number of cores. On a GPU, and
        with 1, chains run one after another.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    num_warmup: int = 500
    num_samples: int = 1000
    num_chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    num_processes: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_warmup", 1), ("num_samples", 4), ("num_chains", 1), ("max_tree_depth", 1), ("num_processes", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name == "num_processes":
                continue
            count(value, name, "NUTS", least)
        share(self.target_accept, "target_accept", "NUTS")

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Raise a ValueError unless the prior has a density and the draws fit in memory."""
        if not layer.prior.has_density:
            raise ValueError(
                f"NUTS: expected a prior of independent weights given its hyper-parameters, got {layer.prior!r}; use "
                "bll.SVI(), which runs any Pyro program"
            )
        num_bytes = 8 * self.num_chains * self.num_samples * num_outputs * num_columns
        if num_bytes > MAX_BYTES:
            raise ValueError(
                f"NUTS: expected draws that fit in {MAX_BYTES / 2**30:.0f} GiB, got {self.num_chains} chains x "
                f"{self.num_samples} draws of {num_outputs * num_columns} weights, which take {num_bytes / 2**30:.1f} GiB; "
                "use fewer num_samples, or bll.Laplace() or bll.SVI()"
            )

    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[Posterior, Trace]:
        """Approximate the posterior by a Gaussian, run chains in whitened coordinates, and check them."""
        began = time.perf_counter()
        ranks, rows = rows.ranks, rows.gathered()  # each runs some of the chains, on all rows
        trace, frame = Trace(), rows.frame
        layer.prior.check((layer.likelihood.num_outputs(target_shape), frame.num_features))
        approximation = approximate(layer, rows, target_shape, trace)
        sampled_layer, start = augmented(layer, approximation, frame.num_features, target_shape)
        terms = row_terms(layer.likelihood, rows, len(approximation.loc))
        place = coordinates(sampled_layer, start, rows, target_shape, terms)
        dtype = frame.center.dtype
        density = LogDensity(
            sampled_layer, frame.num_features, target_shape, terms, approximation.learned, place, dtype
        )
        settings = ChainSettings(self.num_warmup, self.num_samples, self.target_accept, self.max_tree_depth)
        num_processes = self._num_processes(rows, trace)
        chains = run_chains(density, seed, self.num_chains, settings, num_processes, ranks)
        learned = {name: value.to(frame.center) for name, value in approximation.learned.items()}
        posterior = DrawsPosterior(layer, frame, target_shape, len(approximation.loc), learned)
        posterior = replace(posterior, draws=present(posterior, density.global_sites, chains))
        keep_statistics(trace, chains, posterior, rows.total_weight)
        check_chains(trace, posterior.draws, self.max_tree_depth)
        trace.wall_time = time.perf_counter() - began
        return posterior, trace

    def _num_processes(self, rows: DesignRows, trace: Trace) -> int:
        if self.num_chains == 1:
            return 1
        if rows.device.type != "cpu":
            trace.notes.append(
                f"the {self.num_chains} chains ran one after another, on the {rows.device.type} device"
            )
            return 1
        if self.num_processes is not None:
            num_processes = self.num_processes
        else:
            import joblib

            num_processes = joblib.cpu_count()
        if num_processes == 1:
            trace.notes.append(f"the {self.num_chains} chains ran one after another, in one process")
        return min(num_processes, self.num_chains)


def present(posterior: DrawsPosterior, sites: GlobalSites, chains: list[Chain]) -> Draws:
    """Draws ``{site: [chain, draw, *event]}`` of the layer's sites, the weights rotated from the frame's axes to features."""
    frame = posterior.frame
    weights = torch.stack([torch.from_numpy(chain.weights) for chain in chains]).to(frame.center)
    draws = {name: value.contiguous() for name, value in frame.split(weights).items()}
    names = posterior.global_sites.priors
    if names:
        u = torch.stack([torch.from_numpy(chain.u) for chain in chains]).to(frame.center.device)
        values = sites.constrain(u)[0]
        draws |= posterior.global_sites.to_user({name: values[name].to(frame.center.dtype) for name in names})
    return draws


def keep_statistics(trace: Trace, chains: list[Chain], posterior: DrawsPosterior, num_rows: float) -> None:
    """Put the chains' statistics of every draw into ``trace.statistics["sample_stats"]``, ``{name: [chain, draw]}``.

    ``lp`` is ``log p(y, A, u)`` in nats, with y in the user's units and u unconstrained; under a horseshoe u includes the
    local scales.
    """
    names = chains[0].statistics
    stats = {
        name: torch.stack([torch.from_numpy(chain.statistics[name]) for chain in chains]) for name in names
    }
    stats["lp"] = stats["lp"] - num_rows * posterior.frame.log_target_scale
    trace.statistics["sample_stats"] = stats
    trace.statistics["num_gradients"] = torch.tensor([chain.num_gradients for chain in chains])
