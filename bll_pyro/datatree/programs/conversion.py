"""``Conversion``: the passes over a model that fill the groups of the tree, one method a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.datatree.layout import make_tree, of_draws
from bll_pyro.datatree.programs.densities import (
    Densities,
    check_rows,
    guide_density,
    unconstrained,
    without_followers,
)
from bll_pyro.datatree.programs.groups import Coords, Dims, Groups
from bll_pyro.datatree.programs.program import Program, Survey, survey, undisturbed
from bll_pyro.datatree.programs.runs import Key, Runner, Runs
from bll_pyro.datatree.programs.source import DrawSource

if TYPE_CHECKING:
    import xarray as xr


@dataclass
class Conversion:
    """A model, the draws of its posterior, and the groups that were made so far.

    Every pass runs the model in isolation and with its own seed, so that a group does not depend on which other groups
    are made.
    """

    program: Program
    source: DrawSource | None
    seen: Survey
    groups: Groups
    vectorize: bool | None
    seeds: Sequence[int]
    """For the posterior predictive, the predictions and the prior."""
    watched: list[Program]
    """Programs whose modules are to be left as they are."""
    datasets: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        program: Program,
        source: DrawSource | None,
        coords: Coords,
        dims: Dims,
        vectorize: bool | None,
        seeds: Sequence[int],
        guide: Callable[..., Any] | None = None,
    ) -> Conversion:
        """Survey the model, on the first draw of the source."""
        watched = [program] + ([Program(guide)] if guide is not None else [])
        with undisturbed(watched, seeds[0]):
            seen = survey(program, None if source is None else _first(source.flat(source.draws)))
        if source is not None:
            source.check(seen)
        attrs = {"evaluation": "vectorised"} | ({} if source is None else source.attrs)
        weighted = [site.name for site in seen.of_kind("latent", "observed", "factor") if site.weighted]
        if weighted:
            attrs["scaled_sites"] = weighted  # by poutine.scale
        groups = Groups(seen.sites, seen.masks, coords, dims)
        return cls(program, source, seen, groups, vectorize, seeds[1:], watched, attrs=attrs)

    def add_posterior(self, *, log_likelihood: bool, log_prior: bool) -> None:
        """Add the draws, their log-densities, and the sampler's statistics."""
        source, shape = self._source, self._source.shape
        num_draws = shape[0] * shape[1]
        seen, latent = self.seen, [site.name for site in self.seen.of_kind("latent")]
        draws = source.flat(latent)
        scored = log_likelihood or log_prior
        if log_likelihood and not seen.of_kind("observed", "factor"):
            raise ValueError(
                "the model observes nothing with these arguments, so that there is no likelihood; expected an observed "
                "site. Pass the data in args or kwargs, or set log_likelihood=False."
            )
        stats = dict(source.stats)
        with undisturbed(self.watched, 0):
            if scored:
                check_rows(self.program, seen, _first(draws))
            seen = without_followers(self.program, seen, _first(draws))
            keys: list[Key] = [("value", site.name) for site in self._followers(seen)]
            keys += Densities.keys(seen) if scored else []
            runs = self._run(
                Runner(self.program, seen, vectorize=self.vectorize, marginal=scored), keys, draws
            )
        values = {
            name: source.draws[name].reshape(num_draws, *source.draws[name].shape[2:]) for name in latent
        }
        values |= {name: runs.value(name) for what, name in keys if what == "value"}
        self.datasets["posterior"] = self.groups.of_sites(values, "value", shape)
        if scored:
            densities = Densities.of(seen, runs, num_draws)
            for name, wanted, part in (
                ("log_likelihood", log_likelihood, densities.likelihood),
                ("log_prior", log_prior, densities.prior),
            ):
                if wanted:
                    self.datasets[name] = self.groups.of_sites(part, "log_prob", shape)
            if densities.likelihood:
                stats["log_p"] = densities.joint.reshape(shape)
                if source.stats or source.transforms:
                    lp = unconstrained(densities.joint, values, source.transforms)
                    stats["lp"] = lp.reshape(shape)
        if source.guide is not None:
            log_q, why_not = guide_density(seen, *source.guide, num_draws)
            if log_q is None:
                self.attrs["log_q_missing"] = why_not
            else:
                stats["log_q"] = log_q.reshape(shape)
        if stats:
            self.datasets["sample_stats"] = of_draws(stats)

    def add_posterior_predictive(self) -> None:
        """Add new data drawn at the posterior's draws."""
        names = [site.name for site in self.seen.of_kind("observed")]
        if names:
            values = self._sample(self.program, self.seen, names, self._draws, self.seeds[0])
            self.datasets["posterior_predictive"] = self.groups.of_sites(values, "value", self._source.shape)

    def add_predictions(self, new: Program, coords: Coords, constant_data: Mapping[str, Any]) -> None:
        """Add data drawn at the posterior's draws for other arguments of the model."""
        names = [site.name for site in self.seen.of_kind("observed")]
        with undisturbed(self.watched, self.seeds[1]):
            seen = survey(new, _first(self._draws), predicted=names)
        names = [site.name for site in seen.of_kind("observed")]
        values = self._sample(new, seen, names, self._draws, self.seeds[1])
        groups = Groups(seen.sites, seen.masks, coords, self.groups.dims)
        self.datasets["predictions"] = groups.of_sites(values, "value", self._source.shape)
        if constant_data:
            self.datasets["predictions_constant_data"] = groups.of_arrays(constant_data)
        self.groups.arrays |= set(constant_data)  # dims are shared
        groups.arrays |= set(self.groups.dims)
        groups.check_all_used()

    def add_prior(self, num_draws: int) -> None:
        """Add draws of latent sites and data from the prior."""
        unknown = [site.name for site in [*self.seen.of_kind("latent"), *self._followers(self.seen)]]
        data = [site.name for site in self.seen.of_kind("observed")]
        values = self._sample(self.program, self.seen, unknown + data, {}, self.seeds[2], num_draws)
        for group, names in (("prior", unknown), ("prior_predictive", data)):
            if names:
                part = {name: values[name] for name in names}
                self.datasets[group] = self.groups.of_sites(part, "value", (1, num_draws))

    def add_data(self, constant_data: Mapping[str, Any]) -> None:
        """Add the data that the model observes, and arrays that come with it."""
        if self.seen.observed:
            self.datasets["observed_data"] = self.groups.of_sites(self.seen.observed, "value")
        if constant_data:
            self.datasets["constant_data"] = self.groups.of_arrays(constant_data)

    def tree(self, attrs: Mapping[str, Any]) -> xr.DataTree:
        """Return the tree of all groups."""
        self.groups.check_all_used()
        return make_tree(self.datasets, {**self.attrs, **attrs})

    @property
    def _source(self) -> DrawSource:
        """The draws; the methods that need them are called only where there are some."""
        assert self.source is not None
        return self.source

    @property
    def _draws(self) -> dict[str, Tensor]:
        """Draws of the model's latent sites, ``[chain * draw, ...]``."""
        return self._source.flat([site.name for site in self.seen.of_kind("latent")])

    def _followers(self, seen: Survey) -> list[Any]:
        """Deterministic sites that the user declared; ``obs_mask`` makes one more, data with the gaps filled."""
        return [
            site
            for site in seen.of_kind("deterministic")
            if not {f"{site.name}_observed", f"{site.name}_unobserved"} & set(seen.sites)
        ]

    def _run(
        self, runner: Runner, keys: Sequence[Key], draws: Mapping[str, Tensor], num_draws: int | None = None
    ) -> Runs:
        """Run, and record why draws were run one by one."""
        shape = self._source.shape if num_draws is None else (1, num_draws)
        runs = runner.run(keys, shape[0] * shape[1], draws)
        if runs.loop_reason:
            self.attrs["evaluation"] = f"one by one: {runs.loop_reason}"
        return runs

    def _sample(
        self,
        program: Program,
        seen: Survey,
        names: Sequence[str],
        draws: Mapping[str, Tensor],
        seed: int,
        num_draws: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Draw sites, with the observed sites sampled too."""
        keys: list[Key] = [("value", name) for name in names]
        with undisturbed([*self.watched, program], seed):
            try:
                runs = self._run(
                    Runner(program, seen, release=True, vectorize=self.vectorize), keys, draws, num_draws
                )
            except NotImplementedError as error:
                why = (str(error).splitlines() or ["no sampler"])[0]
                remedy = "prior=False" if num_draws is not None else "posterior_predictive=False"
                raise ValueError(
                    f"the model has a distribution that cannot be sampled ({why}); set {remedy}."
                ) from error
        return {name: runs.value(name) for name in names}


def _first(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first of the draws."""
    return {name: value[0] for name, value in draws.items()}
