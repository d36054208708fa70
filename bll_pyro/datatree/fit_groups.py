"""The groups of a fit's tree, one method for those that are made together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from bll_pyro.datatree.fit_prior import in_float64, log_prior_of_draws, sample_prior
from bll_pyro.datatree.layout import Layout
from bll_pyro.datatree.row_evaluation import (
    RowEvaluator,
    derived_seed,
    parts_of,
    posterior_draws,
    scored_size,
    stored_index,
)
from bll_pyro.datatree.tree import SAMPLE_DIMS, of_draws
from bll_pyro.declaration import to_plain
from bll_pyro.posterior import Draws, DrawsPosterior, Posterior

if TYPE_CHECKING:
    import xarray as xr

    from bll_pyro.fitting import Fit

UNITS = "standardised: weights, hyper-parameters, noise (see constant_data); as given: y and its densities"


@dataclass
class Kept:
    """Arrays ``[chain, c, ...]`` of each chunk of draws, by group and name, and shapes of whole sites."""

    parts: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, group: str, name: str, value: np.ndarray) -> None:
        """Keep a chunk."""
        self.parts.setdefault(group, {}).setdefault(name, []).append(value)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Join the chunks along the draw axis."""
        return {group: {k: np.concatenate(v, 1) for k, v in own.items()} for group, own in self.parts.items()}


@dataclass
class FitGroups:
    """The groups made so far, and the attributes of the tree."""

    fit: Fit
    rows: RowEvaluator
    layout: Layout
    seed: int
    datasets: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    num_draws: int = 0

    def __post_init__(self) -> None:
        fit = self.fit
        learned = {name: value.tolist() for name, value in fit.posterior.learned.items()}
        self.attrs |= {
            "declaration": yaml_of(fit.layer),
            "inference": yaml_of(fit.inference),
            "seed": self.seed,
            "fit_seed": fit.seed,
            "learned": yaml.safe_dump(learned, sort_keys=False) if learned else "",
            "independent_draws": int(fit.posterior.independent_draws),
            "num_training_rows": fit.num_rows,
            "units": UNITS,
        }

    def add_posterior(
        self,
        num_draws: int | None,
        thin: int,
        posterior_predictive: bool,
        log_likelihood: bool,
        log_prior: bool,
        class_probs: bool,
    ) -> None:
        """Pass over the draws once, and keep what is asked for of each chunk."""
        posterior, rows = self.fit.posterior, self.rows
        kept = Kept()
        number = 0
        for chunk in posterior_draws(posterior, num_draws, thin, self.seed):
            for draws in parts_of(chunk, scored_size(posterior, len(chunk["weight"]))):
                self._keep_sites(kept, "posterior", draws)
                if log_prior:
                    for name, value in log_prior_of_draws(rows.posterior, draws).items():
                        kept.add("log_prior", name, value.cpu().numpy())
                if log_likelihood:
                    kept.add("log_likelihood", "y", rows.log_likelihood(draws))
                if posterior_predictive:
                    new = rows.new_targets(draws, derived_seed(self.seed, 1, number))
                    kept.add("posterior_predictive", "y", new)
                if class_probs:
                    kept.add("posterior_predictive", "class_probs", rows.class_probs(draws))
                log_q, why_not = _log_q(rows.posterior, draws)
                if log_q is None:
                    self.attrs["log_q_missing"] = why_not
                else:
                    kept.add("sample_stats", "log_q", log_q)
                number += draws["weight"].shape[1]
        arrays = kept.arrays()
        self.num_draws = number * len(arrays["posterior"]["weight"])
        self.datasets["posterior"] = self.layout.of_sites(arrays["posterior"], kept.shapes)
        for group in ("log_likelihood", "posterior_predictive"):
            if group in arrays:
                self.datasets[group] = self._of_rows(arrays[group])
        if log_prior:
            self.datasets["log_prior"] = of_draws(arrays["log_prior"])
        stats = arrays.get("sample_stats", {})
        if log_prior and log_likelihood:
            by_row = arrays["log_likelihood"]["y"]
            log_p = by_row.reshape(*by_row.shape[:2], -1).sum(-1) + sum(arrays["log_prior"].values())
            stats = {"log_p": log_p, **stats}
        stats |= self._sampler_stats(num_draws, thin)
        if stats:
            self.datasets["sample_stats"] = of_draws(stats)

    def add_prior(self, num_draws: int) -> None:
        """Draw sites from the prior, and targets given them."""
        posterior, kept = self.fit.posterior, Kept()
        size = scored_size(posterior)
        for start in range(0, num_draws, size):
            draws = sample_prior(posterior, min(size, num_draws - start), derived_seed(self.seed, 2, start))
            self._keep_sites(kept, "prior", draws)
            new = self.rows.new_targets(draws, derived_seed(self.seed, 3, start))
            kept.add("prior_predictive", "y", new)
        arrays = kept.arrays()
        self.datasets["prior"] = self.layout.of_sites(arrays["prior"], kept.shapes)
        self.datasets["prior_predictive"] = self._of_rows(arrays["prior_predictive"])

    def add_data(self, include_features: bool) -> None:
        """Targets, constants of the standardisation, tensors of the declaration."""
        frame, dims = self.fit.posterior.frame, self.layout.target_dims
        self.datasets["observed_data"] = self.layout.dataset({"y": (("obs", *dims), self.rows.given)})
        constants: dict[str, tuple[Sequence[str], np.ndarray]] = {
            "feature_center": (["feature"], frame.center.cpu().numpy()),
            "feature_scale": (["feature"], frame.scale.cpu().numpy()),
        }
        if self.fit.posterior.layer.likelihood.real_valued:
            for name in ("target_center", "target_scale"):
                value = getattr(frame, name).reshape(self.rows.target_shape)
                constants[name] = (list(dims), value.cpu().numpy())
        if include_features:
            constants["features"] = (["obs", "feature"], self.rows.features.tensor().cpu().numpy())
        for name, column in (
            ("sample_weight", self.rows.columns.weight),
            ("exposure", self.rows.columns.exposure),
        ):
            if column is not None:
                flat = column.squeeze(-1) if column.dim() == 2 and column.shape[1] == 1 else column
                constants[name] = (["obs", *dims][: flat.dim()], flat.cpu().numpy())
        tensors: dict[str, Tensor] = {}
        to_plain(self.fit.layer, tensors, "layer")
        for name, value in tensors.items():
            constants[name] = (self.layout.event_dims(name, tuple(value.shape)), value.cpu().numpy())
        self.datasets["constant_data"] = self.layout.dataset(constants)

    def _keep_sites(self, kept: Kept, group: str, draws: Draws) -> None:
        for name, value in draws.items():
            kept.shapes[name] = tuple(value.shape[2:])
            kept.add(group, name, self.layout.select(name, value))

    def _of_rows(self, arrays: dict[str, np.ndarray]) -> xr.Dataset:
        last = {"y": self.layout.target_dims, "class_probs": ("class",)}
        # the log likelihood of targets that are tied to each other has no axis of them
        dims = {k: [*SAMPLE_DIMS, "obs", *last[k]][: v.ndim] for k, v in arrays.items()}
        return self.layout.dataset({k: (dims[k], v) for k, v in arrays.items()})

    def _sampler_stats(self, num_draws: int | None, thin: int) -> dict[str, np.ndarray]:
        """What a sampler kept by draw, for the draws that are taken."""
        posterior = self.fit.posterior
        if not isinstance(posterior, DrawsPosterior):
            return {}
        stored = posterior.draws["weight"].shape[:2]
        index = stored_index(posterior, num_draws, thin)
        arrays, statistics = (Tensor, np.ndarray), self.fit.trace.statistics
        kept = {**statistics, **statistics.get("sample_stats", {})}
        values = {k: v for k, v in kept.items() if isinstance(v, arrays) and v.shape == stored}
        if posterior.log_q is not None:
            values["log_q"] = posterior.log_q.double()
            self.attrs.pop("log_q_missing", None)
        return {k: torch.as_tensor(v)[:, index].cpu().numpy() for k, v in values.items()}


def _log_q(posterior: Posterior, draws: Draws) -> tuple[np.ndarray | None, str]:
    try:
        return posterior.log_prob(in_float64(draws)).cpu().numpy(), ""
    except ValueError as error:  # a point or a set of draws has no density, and says so
        return None, str(error)


def yaml_of(declaration: Any) -> str:
    """A declaration as YAML."""
    # a guide function cannot be written, but it can be named
    return yaml.safe_dump(to_plain(declaration, {}, functions=True), sort_keys=False)
