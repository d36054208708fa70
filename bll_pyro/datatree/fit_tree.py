"""``to_datatree``: a fit and rows as an ArviZ DataTree, with every group of the workflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bll_pyro.datatree.fit_groups import FitGroups
from bll_pyro.datatree.layout import make_layout
from bll_pyro.datatree.row_evaluation import RowEvaluator, in_double
from bll_pyro.datatree.tree import make_tree
from bll_pyro.features.data import check_finite
from bll_pyro.features.store import Features

if TYPE_CHECKING:
    import xarray as xr

    from bll_pyro.fitting import Fit


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
    ``posterior_predictive`` new targets ``y``; ``class_probs`` if asked for    ``chain, draw, obs`` (``, output``, ``class``)
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
        Coordinates: of classes, of outputs (by default the classes, where there is one output for each), of features.
    class_probs
        Also keep each draw's class probabilities, in ``posterior_predictive``.
    include_features
        Also keep the features ``[obs, feature]``, in ``constant_data``.

    Raises
    ------
    ValueError
        When there are no targets, or names and selections do not fit the layer.
    """
    _check_numbers(num_draws, thin, prior)
    rows = _rows(fit, inputs, targets)
    posterior, likelihood = fit.posterior, fit.posterior.layer.likelihood
    if class_probs and not likelihood.is_discrete:
        raise ValueError(
            f"to_datatree(class_probs=True): expected a fit of classes, got {type(likelihood).__name__}"
        )
    layout = make_layout(
        posterior, rows.target_shape, class_names, output_names, feature_names, outputs, features
    )
    groups = FitGroups(fit, rows, layout, seed)
    groups.add_posterior(num_draws, thin, posterior_predictive, log_likelihood, log_prior, class_probs)
    if prior:
        groups.add_prior(min(groups.num_draws, 1000) if prior is True else prior)
    groups.add_data(include_features)
    return make_tree(groups.datasets, groups.attrs)


def _check_numbers(num_draws: int | None, thin: int, prior: bool | int) -> None:
    for name, value in (("num_draws", num_draws), ("thin", thin), ("prior", prior)):
        if value is None or (isinstance(value, bool) and name == "prior"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"to_datatree({name}=...): expected a whole number >= 1, got {value!r}")


def _rows(fit: Fit, inputs: Any, targets: Any) -> RowEvaluator:
    features: Features = fit.features(inputs)
    given = features.targets if targets is None else torch.as_tensor(np.asarray(targets))
    if given is None:
        raise ValueError(
            "to_datatree: expected targets, got inputs alone; pass to_datatree(inputs, targets), or data that has both"
        )
    if len(given) != len(features):
        raise ValueError(f"to_datatree: expected {len(features)} targets, one for each row, got {len(given)}")
    check_finite(given, "targets")
    checked = fit.layer.likelihood.check_targets(given)
    target_shape = fit.posterior.target_shape
    if tuple(given.shape[1:]) != tuple(target_shape):
        raise ValueError(
            f"to_datatree: expected targets of shape {['N', *target_shape]}, as in the fit, got {list(given.shape)}"
        )
    shown = (given.long() if given.dtype == torch.bool else given).cpu().numpy()
    return RowEvaluator(in_double(fit.posterior), features, checked, shown, fit.columns(inputs))
