"""``prior_predictive``: draws from the prior of a declaration, as outputs, probabilities, entropies and targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.datatree.fit_tree import yaml_of, yaml_of_labels
from bll_pyro.datatree.layout import Parts, join_chunks, make_layout, make_tree
from bll_pyro.datatree.prior_sites import sample_prior
from bll_pyro.datatree.row_evaluation import (
    RowEvaluator,
    derived_seed,
    draws_at_once,
    in_double,
)
from bll_pyro.features.data import check_finite, paired, read
from bll_pyro.features.sources import Source
from bll_pyro.features.store import Features
from bll_pyro.frame import as_floats
from bll_pyro.inference.standardization import make_frame
from bll_pyro.inference.training_data import numbered, with_classes_of
from bll_pyro.layer import LastLayer
from bll_pyro.model import Model
from bll_pyro.posterior import Draws, DrawsPosterior, Posterior
from bll_pyro.scope import isolated, own_modes

if TYPE_CHECKING:
    import xarray as xr

MAX_BYTES = 4 * 2**30
UNITS = "standardised: f, weights, hyper-parameters, noise; as given: y"


@own_modes()
def prior_predictive(
    layer: LastLayer,
    features: Any,
    targets: Any = None,
    *,
    num_draws: int = 500,
    seed: int = 0,
    learned: Mapping[str, Any] | None = None,
    weights: bool = False,
    class_names: Sequence[Any] | None = None,
    output_names: Sequence[Any] | None = None,
    feature_names: Sequence[Any] | None = None,
) -> xr.DataTree:
    """Draw from the prior of a last layer, as outputs and targets of given features.

    A prior on thousands of weights is hard to judge; its outputs for real features are not. With independent weights of
    scale s, an output has the standard deviation ``s |h|``: with 2,048 raw features of size 1 a unit prior gives outputs
    of size 45, and so a softmax that is certain of one class before it has seen any label.

    ========================== ======================================= =========================================
    variable                   what it is                              dims
    ========================== ======================================= =========================================
    ``prior``                  noise and hyper-parameters; ``weight``  ``chain, draw, ...``
                               and ``bias`` with ``weights=True``
    ``prior_predictive/f``     outputs ``W h + b``                     ``chain, draw, obs, output``
    ``.../class_probs``        class probabilities given f             ``chain, draw, obs, class``
    ``.../label_probs``        of labels 0 and 1: probability of 1     ``chain, draw, obs`` (``, output``)
    ``.../entropy``            of those probabilities, nats            ``chain, draw, obs`` (``, output``)
    ``.../y``                  targets, in the user's units            ``chain, draw, obs`` (``, output``)
    ``observed_data/y``        the targets, where they are given       ``obs`` (``, output``)
    ========================== ======================================= =========================================

    Draws are independent: one chain. :func:`bll_pyro.plots.prior_predictive` shows the result; ArviZ's plots of predictive
    checks take ``var_names=["y"]``.

    Parameters
    ----------
    layer
        The declaration.
    features
        Features ``[N, D]`` of some rows (an array, a tensor, a ``Features`` store, or ``Data``). With ``standardize=True`` they are
        also what is standardised by.
    targets
        Their targets. A standardised real-valued likelihood needs them, for centre and scale; else they give the
        number of targets of a row, and are kept for comparison. No prior depends on them beyond that.
    num_draws
        Number of draws of all weights.
    seed
        Seeds all draws. The caller's random state is not changed.
    learned
        Values of the hyper-parameters that a fit would learn, e.g. ``{"tau": 0.3}``; by default where a fit starts (1).
        The attribute ``learned`` of the tree has them.
    weights
        Whether to keep the draws of weight and bias.
    class_names, output_names, feature_names
        Coordinates, as in :func:`bll_pyro.datatree.to_datatree`.

    Raises
    ------
    TypeError, ValueError
        When the declaration, the features or the targets do not fit together, or the result would not fit in 4 GiB.
    """
    if not isinstance(layer, LastLayer):
        raise TypeError(
            f"prior_predictive: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}; of a fit use "
            "fit.to_datatree(...), which has the groups prior and prior_predictive"
        )
    num_draws = count(num_draws, "num_draws", "prior_predictive")
    source = read(paired(features, targets), need_targets=False, what="features")
    rows = _rows(layer, features, source, learned)
    _check_memory(rows, num_draws)
    posterior = rows.posterior
    feature_names = source.feature_names if feature_names is None else feature_names
    layout = make_layout(posterior, class_names, output_names, feature_names)
    arrays, draws = _draw(rows, num_draws, seed, weights)
    datasets = {}
    if "prior" in arrays:
        datasets["prior"] = layout.of_sites(arrays["prior"], draws)
    datasets["prior_predictive"] = layout.of_draws(arrays["prior_predictive"])
    if targets is not None or (isinstance(features, Features) and features.targets is not None):
        datasets["observed_data"] = layout.dataset({"y": (("obs", *layout.target_dims), rows.given)})
    values = {name: value.tolist() for name, value in posterior.learned.items()}
    attrs = {
        "declaration": yaml_of(layer),
        "learned": yaml.safe_dump(values, sort_keys=False) if values else "",
        "seed": seed,
        "classes": yaml_of_labels(posterior.layer.likelihood.coding),
        "units": UNITS,
    }
    return make_tree(datasets, attrs)


def _rows(layer: LastLayer, features: Any, source: Source, learned: Mapping[str, Any] | None) -> RowEvaluator:
    """Rows, and a posterior without draws: the frame of the features, and hyper-parameters at given values."""
    whole = source.tensors()
    if whole is None or not isinstance(whole[0], Tensor):
        raise TypeError(
            f"prior_predictive(features=...): expected an array or a Features store, got {type(features).__name__}; "
            "use bll.extract(backbone, data)"
        )
    inputs = whole[0]
    if inputs.dim() != 2:
        raise ValueError(
            f"prior_predictive(features=...): expected features of shape [N, D], got {list(inputs.shape)}; run the "
            "backbone first, bll.extract(backbone, inputs), or reshape with inputs.flatten(1)"
        )
    inputs = as_floats(inputs)
    check_finite(inputs, "features")
    if source.has_targets:
        layer = with_classes_of(layer, source, "prior_predictive")
        source = numbered(source, layer.likelihood, "prior_predictive")
    likelihood, num_rows, given = layer.likelihood, len(inputs), source.all_targets()
    if given is None:
        if likelihood.real_valued and layer.standardize:
            raise ValueError(
                "prior_predictive: expected targets, whose centre and scale a standardised layer needs to be in their units, "
                "got features alone; pass prior_predictive(layer, features, targets), or declare standardize=False"
            )
        is_float = likelihood.real_valued
        given = torch.zeros(num_rows, dtype=torch.get_default_dtype() if is_float else torch.long)
        checked = given if likelihood.is_discrete else given.to(inputs.dtype)[:, None]
    else:
        check_finite(given, "targets")
        checked = likelihood.check_targets(given)
    shape = () if likelihood.is_discrete else tuple(given.shape[1:])
    stored = Features.from_tensors(inputs, given)
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    with isolated(0, dtype):
        frame = make_frame(layer, stored, checked, False, dtype, source.columns, source.stored is None)
        inside = layer.in_frame(frame)
        model = Model(inside, frame.num_features, shape)
        values = _learned(layer, {k: v.detach() for k, v in model.learned.items()}, learned or {})
    posterior = DrawsPosterior(inside, frame, shape, model.num_outputs, values)
    shown = (given.long() if given.dtype == torch.bool else given).cpu().numpy()
    columns = source.columns
    return RowEvaluator(posterior, inputs.detach(), checked, shown, columns.weight, columns.exposure)


def _learned(layer: LastLayer, start: dict[str, Tensor], given: Mapping[str, Any]) -> dict[str, Tensor]:
    unknown = set(given) - set(start)
    if unknown:
        raise ValueError(
            f"prior_predictive(learned=...): expected names among {sorted(start) or 'none'}, which {layer.prior!r} learns, "
            f"got {sorted(unknown)}; a prior with a given scale has nothing to learn"
        )
    for name, value in given.items():
        number = torch.as_tensor(value, dtype=start[name].dtype)
        if number.dim() > start[name].dim() or not bool((number > 0).all() & torch.isfinite(number).all()):
            raise ValueError(
                f"prior_predictive(learned=...): expected positive {name} of shape {list(start[name].shape)}, got {value!r}"
            )
        start[name] = number.expand_as(start[name]).clone()
    return start


def _draw(
    rows: RowEvaluator, num_draws: int, seed: int, weights: bool
) -> tuple[dict[str, dict[str, np.ndarray]], Draws]:
    """Arrays by group and name, and the last chunk of draws of the sites, which shows their shapes."""
    posterior, draws = rows.posterior, {}
    parts: Parts = defaultdict(list)
    rows = replace(rows, posterior=in_double(posterior))
    likelihood, size = posterior.layer.likelihood, draws_at_once(posterior)
    for start in range(0, num_draws, size):
        draws = sample_prior(posterior, min(size, num_draws - start), derived_seed(seed, 2, start))
        for name, value in draws.items():
            if weights or name not in ("weight", "bias"):
                parts["prior", name].append(value.numpy())
        parts["prior_predictive", "f"].append(rows.outputs(draws))
        probs: np.ndarray | None = None
        if likelihood.is_discrete:
            probs = rows.class_probs(draws)
            parts["prior_predictive", "class_probs"].append(probs)
        elif likelihood.is_binary:
            one = rows.label_probs(draws)
            parts["prior_predictive", "label_probs"].append(one)
            probs = np.stack([1 - one, one], -1)
        if probs is not None:
            parts["prior_predictive", "entropy"].append(
                torch.special.entr(torch.as_tensor(probs)).sum(-1).numpy()
            )
        parts["prior_predictive", "y"].append(rows.new_targets(draws, derived_seed(seed, 3, start)))
    return join_chunks(parts), draws


def _check_memory(rows: RowEvaluator, num_draws: int) -> None:
    posterior: Posterior = rows.posterior
    numbers = posterior.num_outputs * (2 if posterior.layer.likelihood.is_discrete else 1) + 2
    num_bytes = 4 * num_draws * len(rows.targets) * numbers
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"prior_predictive: expected a result that fits in {MAX_BYTES / 2**30:.0f} GiB, got {num_draws} draws x "
            f"{len(rows.targets)} rows x {posterior.num_outputs} outputs, which take {num_bytes / 2**30:.1f} GiB; a few "
            "hundred rows show what a prior says"
        )
