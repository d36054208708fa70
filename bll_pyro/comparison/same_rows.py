"""Whether fits were made from the same rows, so that their log densities can be subtracted row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bll_pyro.classes import Classes
from bll_pyro.fitting import Fit
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.inference.exact.exact import Exact
from bll_pyro.likelihoods import Likelihood

TOLERANCE = 1e-3  # standard deviations: largest distance between the centre of the rows and that of the fit


def check_fits(fits: Mapping[str, Fit]) -> None:
    """Check that these are several fits whose densities have the same unit."""
    if not isinstance(fits, Mapping) or not all(isinstance(fit, Fit) for fit in fits.values()):
        raise TypeError(f'compare: expected fits by name, {{"normal": fit, ...}}, got {type(fits).__name__}')
    if len(fits) < 2:
        raise ValueError(
            f"compare: expected at least two fits, got {len(fits)}; use bll.loo(fit, data) for one fit"
        )
    _check_kind(fits)
    check_same_classes({name: fit.layer.likelihood.coding for name, fit in fits.items()}, "compare")
    num_rows = {name: fit.num_rows for name, fit in fits.items()}
    if len(set(num_rows.values())) > 1:
        raise ValueError(
            f"compare: expected fits of the same rows, got numbers of rows {num_rows}; fit all on the same rows, or judge them on "
            "held-out ones by fit.predict(inputs).log_prob(targets)"
        )


def check_targets(what: str, name: str, rows: LabelledRows, others: LabelledRows) -> None:
    """Check that the targets of one fit's data are those of the others."""
    targets, expected = rows.given, others.given
    if targets.shape != expected.shape or not torch.equal(targets, expected.to(targets)):
        raise ValueError(
            f"compare({what}=...): expected the same targets in the same order for all fits, got others for {name!r}; densities "
            "of different rows cannot be subtracted (a loader must not shuffle)"
        )


def check_trained_on(name: str, fit: Fit, features: Tensor) -> None:
    """Check that a fit was made from these rows: their number, and the centre of their features."""
    if fit.num_rows != len(features):
        raise ValueError(
            f"compare: expected the {fit.num_rows} rows that {name!r} was fitted on, got {len(features)}; held-out rows go into "
            "new_data"
        )
    layer, frame = fit.layer, fit.posterior.frame
    # these frames need not be the mean and scale of the rows: the prior's, that of the rows before an update
    if not layer.standardize or layer.prior.frame is not None or isinstance(fit.inference, Exact):
        return
    if fit.inference.trains_backbone:
        return
    center = frame.center.double()
    distance = (features.mean(0, dtype=torch.float64) - center).abs()
    distance = distance - torch.finfo(frame.center.dtype).eps * center.abs()  # the centre is rounded
    away = float((distance / frame.scale).max())
    if away > TOLERANCE:
        raise ValueError(
            f"compare: expected the rows that {name!r} was fitted on, got rows whose features are centred {away:.2g} standard "
            "deviations away from those; pass its training rows, in the form that it was fitted on"
        )


def by_name(fits: Mapping[str, Fit], data: Any, what: str) -> dict[str, Any]:
    """The data of each fit."""
    if not isinstance(data, Mapping):
        return dict.fromkeys(fits, data)
    missing, extra = set(fits) - set(data), set(data) - set(fits)
    if missing or extra:
        raise ValueError(
            f"compare({what}=...): expected data for the fits {sorted(fits)}, got {sorted(data)}; use the same names"
        )
    return {name: data[name] for name in fits}


def check_same_classes(codings: Mapping[str, Classes | None], owner: str) -> None:
    """Check that the classes are the same ones in the same order, so that probabilities belong to the same classes."""
    (first, known), *others = codings.items()
    for name, coding in others:
        if (known is None) != (coding is None) or (known and coding and known.labels != coding.labels):
            said = [coding or "class numbers" for coding in (known, coding)]
            raise ValueError(
                f"{owner}: expected fits of the same classes in the same order, got {said[0]} of {first!r} and {said[1]} of "
                f"{name!r}; name them for each fit: classes=[...] of the likelihood"
            )


def check_one_kind(likelihoods: Mapping[str, Likelihood], owner: str) -> None:
    """Check that either all or none of the densities are those of real numbers."""
    real = {name: likelihood.real_valued for name, likelihood in likelihoods.items()}
    if len(set(real.values())) > 1:
        densities = [name for name, value in real.items() if value]
        raise ValueError(
            f"{owner}: expected densities of one kind, got densities of real numbers for {densities} and probabilities for the "
            "others; their difference depends on the unit of the targets"
        )


def _check_kind(fits: Mapping[str, Fit]) -> None:
    check_one_kind({name: fit.layer.likelihood for name, fit in fits.items()}, "compare")
    shapes = {name: tuple(fit.posterior.target_shape) for name, fit in fits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"compare: expected fits of the same targets, got target shapes {shapes}")
