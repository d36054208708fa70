"""``to_datatree``: a fit and rows as an ArviZ DataTree, with every group of the workflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.classes import Classes
from bll_pyro.datatree.layout import Layout, Parts, join_chunks, make_layout, make_tree
from bll_pyro.datatree.prior_sites import log_prior_of_draws, sample_prior
from bll_pyro.datatree.row_evaluation import (
    RowEvaluator,
    derived_seed,
    draws_at_once,
    in_double,
    in_float64,
    scored_draws,
    stored_index,
)
from bll_pyro.declaration import to_plain
from bll_pyro.posterior import DrawsPosterior
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    import xarray as xr

    from bll_pyro.fitting import Fit

UNITS = "standardised: weights, hyper-parameters, noise (see constant_data); as given: y and its densities"


@own_modes()
def to_datatree(
    fit: Fit,
    inputs: Any,
    targets: Any = None,
    *,
    num_draws: int | None = None,
    thin: int = 1,
    seed: int = 0,
    prior: bool | int = True,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    log_prior: bool = True,
    outputs: Sequence[Any] | None = None,
    features: Sequence[Any] | None = None,
    class_names: Sequence[Any] | None = None,
    output_names: Sequence[Any] | None = None,
    feature_names: Sequence[Any] | None = None,
    class_probs: bool = False,
    include_features: bool = False,
) -> xr.DataTree:
    """Convert a fit, on given rows, to a DataTree that ArviZ 1.x understands.

    ======================== ================================================== ===========================================
    group                    what it holds                                      dims
    ======================== ================================================== ===========================================
    ``posterior``            draws of weight, bias, noise, hyper-parameters     ``chain, draw`` and ``output, feature``
    ``sample_stats``         ``log_p`` = log p(y, all sites), ``log_q`` where   ``chain, draw``
                             a density exists, what a sampler kept by draw
    ``log_likelihood``       log p(y_n | draw) of each row, or of each target,  ``chain, draw, obs`` (``, output``)
                             times the row's weight
    ``log_prior``            log p(site) by site                                ``chain, draw``
    ``posterior_predictive`` new targets ``y``                                  ``chain, draw, obs`` (``, output``)
    ``class_probs``          P(y_n = c | draw) as ``y``, if asked for           ``chain, draw, obs, class``
    ``prior``                draws of all sites from the prior                  as in ``posterior``
    ``prior_predictive``     new targets ``y`` under the prior                  ``chain, draw, obs`` (``, output``)
    ``observed_data``        targets ``y``                                      ``obs`` (``, output``)
    ``constant_data``        centre and scale of features and targets, weights  ``feature``, ``output``, ``obs``
                             and exposures of the rows
    ======================== ================================================== ===========================================

    All groups are of the same draws. Draws of Gaussian posteriors are independent: one chain, and
    ``attrs["independent_draws"] = 1``; R-hat and effective sample size say nothing about them. Weights are those of
    standardised features; y and its densities are in the user's units, with the Jacobian of the standardisation.
    Log densities are in float64. Memory: what the groups hold, and chunks.

    Of a fit with a recalibration (``attrs["recalibration"]``) new targets and class probabilities follow it, row by row: those
    of a draw are tilted so that the average over draws is the prediction (:mod:`bll_pyro.prediction.tilt`), and noise is scaled.
    ``log_likelihood`` and ``log_p`` stay those of the model: by them the posterior was made, and ``az.loo``, power scaling and
    every other method that weights draws needs these. So ``az.loo`` of the tree is that of the fit before its recalibration;
    :func:`bll_pyro.loo` is that of the recalibrated one.

    Of a fit whose classes have labels the coordinates ``class``, and ``output`` where there is one for each class, hold these;
    targets ``y`` are class numbers, which ArviZ's plots need, and ``attrs["classes"]`` lists the labels in their order.

    Parameters
    ----------
    fit
        A fit of this library.
    inputs, targets
        Rows in any form that :func:`bll_pyro.fit` takes (with weights or exposures in a ``bll.Data``); targets are taken
        from the data where None.
    num_draws
        Number of draws; None is 1,000, or all that the posterior has stored.
    thin
        Keep every so many draws.
    seed
        Seeds all draws. The caller's random state is not changed.
    prior
        Whether to draw from the prior, or how often (by default as often as from the posterior, at most 1,000 times).
        Learned hyper-parameters are taken at their values.
    posterior_predictive, log_likelihood, log_prior
        Which groups to make. ``log_p`` is made where both densities are.
    outputs, features
        Weights to keep, by position or by name, for layers whose draws would not fit in memory; densities and
        predictions are always of the whole layer.
    class_names, output_names, feature_names
        Coordinates: of classes (by default their labels), of outputs (by default the classes, where there is one output for each),
        of features (by default the names of the columns, where the training rows came in a data frame and no backbone makes other
        features of them).
    class_probs
        Also keep each draw's class probabilities, in a group of their own.
    include_features
        Also keep the features ``[obs, feature]``, in ``constant_data``.

    Raises
    ------
    ValueError
        When there are no targets, or names and selections do not fit the layer.
    """
    _check_numbers(num_draws, thin, prior)
    given = fit.rows(inputs, targets)
    posterior, likelihood = fit.posterior, fit.posterior.layer.likelihood
    if class_probs and not likelihood.is_discrete:
        raise ValueError(
            f"to_datatree(class_probs=True): expected a fit of classes, got {type(likelihood).__name__}"
        )
    feature_names = fit.head.feature_names if feature_names is None else feature_names
    layout = make_layout(posterior, class_names, output_names, feature_names, outputs, features)
    shown = given.given.long() if given.given.dtype == torch.bool else given.given
    rows = RowEvaluator(
        in_double(posterior),
        given.features.detach(),
        given.targets,
        shown.detach().cpu().numpy(),
        given.columns.weight,
        given.columns.exposure,
        fit.recalibration,
    )
    groups = FitGroups(fit, rows, layout, seed)
    groups.add_posterior(num_draws, thin, posterior_predictive, log_likelihood, log_prior, class_probs)
    if prior:
        groups.add_prior(min(groups.num_draws, 1000) if prior is True else prior)
    groups.add_data(include_features)
    return make_tree(groups.datasets, groups.attrs)


def _check_numbers(num_draws: int | None, thin: int, prior: bool | int) -> None:
    for name, value in (("num_draws", num_draws), ("thin", thin), ("prior", prior)):
        is_switch = value is None or (isinstance(value, bool) and name == "prior")
        if not is_switch and (type(value) is not int or value < 1):
            count(value, name, "to_datatree")


@dataclass
class FitGroups:
    """The groups of a fit's tree that were made so far, and its attributes."""

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
            "recalibration": "" if fit.recalibration is None else yaml_of(fit.recalibration),
            "classes": yaml_of_labels(fit.layer.likelihood.coding),
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
        """Go through the draws once, and keep what is asked for of each chunk."""
        posterior, rows, number = self.fit.posterior, self.rows, 0
        kept: Parts = defaultdict(list)
        for draws in scored_draws(posterior, num_draws, thin, self.seed):
            self.layout.keep_sites(kept, "posterior", draws)
            if log_prior:
                for name, value in log_prior_of_draws(rows.posterior, draws).items():
                    kept["log_prior", name].append(value.cpu().numpy())
            if log_likelihood:
                kept["log_likelihood", "y"].append(rows.log_likelihood(draws))
            if posterior_predictive:
                new = rows.new_targets(draws, derived_seed(self.seed, 1, number))
                kept["posterior_predictive", "y"].append(new)
            if class_probs:
                kept["class_probs", "class_probs"].append(rows.class_probs(draws))
            try:
                log_q = rows.posterior.log_prob(in_float64(draws))
                kept["sample_stats", "log_q"].append(log_q.cpu().numpy())
            except ValueError as error:  # a point or a set of draws has no density
                self.attrs["log_q_missing"] = str(error)
            number += draws["weight"].shape[1]
        arrays = join_chunks(kept)
        self.num_draws = number * len(arrays["posterior"]["weight"])
        self.datasets["posterior"] = self.layout.of_sites(arrays["posterior"], draws)
        for group in ("log_likelihood", "posterior_predictive"):
            if group in arrays:
                self.datasets[group] = self.layout.of_draws(arrays[group])
        if class_probs:  # not in posterior_predictive, all of which ArviZ's plots take for targets
            probs = self.layout.of_draws(arrays["class_probs"])
            self.datasets["class_probs"] = probs.rename(class_probs="y")
        if log_prior:
            self.datasets["log_prior"] = self.layout.of_draws(arrays["log_prior"])
        stats = arrays.get("sample_stats", {})
        if log_prior and log_likelihood:
            by_row = arrays["log_likelihood"]["y"]
            log_p = by_row.reshape(*by_row.shape[:2], -1).sum(-1) + sum(arrays["log_prior"].values())
            stats = {"log_p": log_p, **stats}
        if isinstance(posterior, DrawsPosterior):
            stats |= self._sampler_stats(posterior, num_draws, thin)
        if stats:
            self.datasets["sample_stats"] = self.layout.of_draws(stats)

    def add_prior(self, num_draws: int) -> None:
        """Draw sites from the prior, and targets given them."""
        posterior, size = self.fit.posterior, draws_at_once(self.fit.posterior)
        rows = replace(self.rows, recalibration=None)  # which is of the posterior's predictions
        kept: Parts = defaultdict(list)
        for start in range(0, num_draws, size):
            draws = sample_prior(posterior, min(size, num_draws - start), derived_seed(self.seed, 2, start))
            self.layout.keep_sites(kept, "prior", draws)
            new = rows.new_targets(draws, derived_seed(self.seed, 3, start))
            kept["prior_predictive", "y"].append(new)
        arrays = join_chunks(kept)
        self.datasets["prior"] = self.layout.of_sites(arrays["prior"], draws)
        self.datasets["prior_predictive"] = self.layout.of_draws(arrays["prior_predictive"])

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
                value = getattr(frame, name).reshape(self.rows.given.shape[1:])
                constants[name] = (list(dims), value.cpu().numpy())
        if include_features:
            constants["features"] = (["obs", "feature"], self.rows.features.cpu().numpy())
        for name, column in (("sample_weight", self.rows.weight), ("exposure", self.rows.exposure)):
            if column is not None:
                flat = column.squeeze(-1) if column.dim() == 2 and column.shape[1] == 1 else column
                constants[name] = (["obs", *dims][: flat.dim()], flat.cpu().numpy())
        tensors: dict[str, Tensor] = {}
        to_plain(self.fit.layer, tensors, "layer")
        for name, value in tensors.items():
            constants[name] = (self.layout.event_dims(name, tuple(value.shape)), value.cpu().numpy())
        self.datasets["constant_data"] = self.layout.dataset(constants)

    def _sampler_stats(
        self, posterior: DrawsPosterior, num_draws: int | None, thin: int
    ) -> dict[str, np.ndarray]:
        """What a sampler kept of each draw, for the draws that are taken."""
        values = dict(self.fit.trace.by_draw)
        if posterior.log_q is not None:
            values["log_q"] = posterior.log_q.double()
            self.attrs.pop("log_q_missing", None)
        index = stored_index(posterior, num_draws, thin)
        return {name: torch.as_tensor(value)[:, index].cpu().numpy() for name, value in values.items()}


def yaml_of_labels(classes: Classes | None) -> str:
    """Labels of classes as a YAML list, in the order of the numbers that targets have; empty where these are the labels."""
    return "" if classes is None else yaml.safe_dump(list(classes.labels), default_flow_style=True).strip()


def yaml_of(declaration: Any) -> str:
    """A declaration as YAML; functions in it, which cannot be written, are named."""
    return yaml.safe_dump(to_plain(declaration, {}, functions=True), sort_keys=False)
