"""Where draws come from: given samples, a run of MCMC, or a guide; all become ``[chain, draw, ...]`` by site."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bll_pyro.datatree.layout import SAMPLE_DIMS
from bll_pyro.datatree.programs.program import Program, Survey, survey
from bll_pyro.datatree.programs.runs import Key, Runner, Runs

_DTYPES = {"n_steps": np.int64, "tree_depth": np.int64, "reached_max_treedepth": np.bool_}


@dataclass(frozen=True)
class DrawSource:
    """Draws of the latent sites, and what is known of how they were made."""

    draws: dict[str, NDArray[Any]]
    """Values ``[chain, draw, ...]`` by site."""
    stats: dict[str, NDArray[Any]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)
    """From a site's value to the unconstrained value that a sampler moved in."""
    guide: tuple[Survey, Runs] | None = None
    device: torch.device = torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int]:
        """Chains and draws."""
        chains, draws = next(iter(self.draws.values())).shape[:2]
        return chains, draws

    def check(self, seen: Survey) -> None:
        """Refuse draws of sites that the model doesn't have, or observes."""
        latent = {site.name for site in seen.of_kind("latent")}
        observed = sorted(set(self.draws) & {site.name for site in seen.of_kind("observed")})
        unknown = sorted(set(self.draws) - set(seen.sites))
        if self.guide is None and observed:
            raise ValueError(
                f"there are draws of {observed}, which the model observes with these arguments. Leave them out, or "
                "leave the data out of args and kwargs."
            )
        if self.guide is None and unknown:  # a guide may have auxiliary sites
            raise ValueError(
                f"there are draws of {unknown}, but the model has only the sites {sorted(seen.sites)}."
            )
        if not latent & set(self.draws):
            raise ValueError(
                f"none of the draws ({sorted(self.draws)}) is of a latent site of the model ({sorted(latent)})."
            )

    def flat(self, names: Collection[str]) -> dict[str, Tensor]:
        """Values ``[chain * draw, ...]`` of these sites, where the model computes."""
        return {
            name: torch.as_tensor(
                np.ascontiguousarray(value).reshape(-1, *value.shape[2:]), device=self.device
            )
            for name, value in self.draws.items()
            if name in names
        }


def from_samples(samples: Mapping[str, Any], sample_dims: Sequence[str]) -> DrawSource:
    """Take samples whose leading axes are ``sample_dims``."""
    if tuple(sample_dims) not in (SAMPLE_DIMS, SAMPLE_DIMS[1:]):
        raise ValueError(
            "sample_dims must be ('chain', 'draw') or ('draw',), the leading axes of the samples; got "
            f"{tuple(sample_dims)}."
        )
    if not samples:
        raise ValueError("posterior_samples is empty; expected {site: array [chain, draw, ...]}.")
    draws: dict[str, NDArray[Any]] = {}
    for name, value in samples.items():
        array = value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)
        if array.ndim < len(sample_dims):
            raise ValueError(
                f"the draws of {name!r} have shape {array.shape}; expected the leading axes {tuple(sample_dims)}. For "
                "draws without a chain axis say sample_dims=('draw',)."
            )
        draws[name] = array if len(sample_dims) == 2 else array[None]
    device = next((value.device for value in samples.values() if torch.is_tensor(value)), torch.device("cpu"))
    return DrawSource(_checked(draws), attrs={"inference": "posterior_samples"}, device=device)


def from_mcmc(mcmc: Any) -> DrawSource:
    """Take the draws of a run of ``pyro.infer.MCMC``, and the statistics that its kernel kept."""
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError(
            f"mcmc ({type(mcmc).__name__}) has no samples; expected a pyro.infer.MCMC after mcmc.run(...)."
        )
    samples = mcmc.get_samples(group_by_chain=True)
    draws = {name: value.detach().cpu().numpy() for name, value in samples.items()}
    stats, attrs = _sampler_stats(mcmc)
    attrs["inference"] = type(mcmc.kernel).__name__
    transforms = {name: transform for name, transform in (mcmc.transforms or {}).items() if name in draws}
    device = next(iter(samples.values())).device
    return DrawSource(_checked(draws), stats, attrs, transforms, device=device)


def from_guide(program: Program, num_draws: int, vectorize: bool | None) -> DrawSource:
    """Draw from a guide: independent draws, one chain; auxiliary sites are among them."""
    guide = program.call
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError(
            f"the guide ({type(guide).__name__}) has never run, so that it is not trained; expected a guide after SVI."
        )
    seen = survey(program)
    names = [site.name for site in seen.of_kind("latent")]
    if not names:
        raise ValueError(
            f"the guide ({_name_of(guide)}) has no sample sites; expected draws of the model's latent sites."
        )
    keys: list[Key] = [("value", name) for name in names]
    keys += [("log_prob", site.name) for site in seen.of_kind("latent", "factor")]
    runs = Runner(program, seen, vectorize=vectorize).run(keys, num_draws)
    draws = {name: runs.value(name)[None] for what, name in keys if what == "value"}
    attrs = {"inference": _name_of(guide), "independent_draws": 1}
    return DrawSource(_checked(draws), attrs=attrs, guide=(seen, runs), device=seen.device)


def _checked(draws: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Refuse draws that are not numbers, or not equally many for all sites."""
    if not draws:
        raise ValueError("there are no draws; expected at least one latent site.")
    shapes = {name: value.shape[:2] for name, value in draws.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(
            f"expected the same number of chains and draws for all sites, at least one; got {shapes}."
        )
    for name, value in draws.items():
        bad = ~np.isfinite(value).reshape(*value.shape[:2], -1).all(-1)
        if bad.any():
            chain, draw = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"the draws of {name!r} hold NaN or infinite values in {int(bad.sum())} of {bad.size} draws, first at "
                f"chain {chain}, draw {draw}; expected finite numbers. The inference has diverged, or the samples are "
                "damaged."
            )
    return draws


def _name_of(guide: Any) -> str:
    """Name of a guide: its class, or of a function its name."""
    return getattr(guide, "__name__", None) or type(guide).__name__


def _sampler_stats(mcmc: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the statistics ``[chain, draw]`` that a run of MCMC kept; as attributes, what it knows of whole chains.

    Every HMC and NUTS run has ``diverging`` and the share of accepted transitions in each chain; a run with
    :class:`bll_pyro.datatree.RecordingNUTS` has the statistics of every draw.
    """
    # not mcmc.diagnostics(), which adds R-hat and ESS: ArviZ computes them
    chains = [chain or {} for chain in mcmc._diagnostics]
    shape = (len(chains), mcmc.num_samples)
    stats: dict[str, NDArray[Any]] = {}
    attrs: dict[str, Any] = {}
    if all("divergences" in chain for chain in chains):
        stats["diverging"] = np.zeros(shape, dtype=bool)
        for row, chain in zip(stats["diverging"], chains):
            row[np.asarray(chain["divergences"], dtype=int)] = True
    if all("acceptance rate" in chain for chain in chains):
        attrs["accepted_transitions"] = [float(chain["acceptance rate"]) for chain in chains]
    records = [chain.get("statistics") or {} for chain in chains]
    for name in records[0]:
        if all(len(record.get(name, ())) == shape[1] for record in records):
            stats[name] = np.asarray(
                [record[name] for record in records], dtype=_DTYPES.get(name, np.float64)
            )
    return stats, attrs
