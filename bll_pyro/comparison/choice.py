"""``choose``: declarations fitted on the same rows and ranked by leave-one-out, features made once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bll_pyro.checks import device as check_device
from bll_pyro.comparison.candidates import check_all, check_inference, check_targets_of, named, suited_to
from bll_pyro.comparison.ranking import num_flagged
from bll_pyro.elpd import loo
from bll_pyro.features.columns import bundled
from bll_pyro.features.data import read
from bll_pyro.features.extraction import extract_source
from bll_pyro.features.recorded import Recorded
from bll_pyro.features.sources import Source
from bll_pyro.files import user_path
from bll_pyro.fitting import Fit, fit
from bll_pyro.fitting.entry import DEFAULT, check_kinds
from bll_pyro.gaussian.factorization import NotPositiveDefinite
from bll_pyro.inference import Inference
from bll_pyro.inference.base import FitWarning
from bll_pyro.layer import LastLayer
from bll_pyro.observation import call, stage
from bll_pyro.scope import isolated, own_modes, without_warnings
from bll_pyro.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    from arviz_stats.utils import ELPDData

BROKEN = (
    NotPositiveDefinite,
    RuntimeError,
    ArithmeticError,
)  # what numbers do to a fit; wrong input raises others
DENSITIES = ("elpd", "se", "elpd_diff", "dse", "influence", "flagged")  # columns; NaN for a fit that failed
CLEAR = 2.0  # standard errors of a difference: less is no evidence


@dataclass(frozen=True, eq=False)
class Choice(Summary):
    """Fits of several declarations on the same rows, the best first.

    Parameters
    ----------
    table
        One line for each declaration, by the name of it: ``elpd``, the leave-one-out density of the rows in nats, with its
        standard error ``se`` and the effective number of parameters ``p``; ``elpd_diff`` from the best, with the standard
        error ``dse`` of the paired difference; ``influence``, the largest share of a row's precision that is its own (the
        largest Pareto k for draws), and ``flagged``, the number of rows where it is high; ``seconds`` of fit and
        leave-one-out; ``converged``; ``message``, what went wrong. Densities of a fit that failed are NaN.
    loos
        Leave-one-out results by name, pointwise.
    fits
        The fits by name, without those that failed.
    """

    table: pd.DataFrame
    loos: dict[str, ELPDData]
    fits: dict[str, Fit]

    @property
    def best(self) -> str:
        """Name of the declaration with the highest leave-one-out density."""
        return str(self.table.index[0])

    @property
    def fit(self) -> Fit:
        """The fit of it: what ``bll.fit`` gives for that declaration."""
        return self.fits[self.best]

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def lines(self) -> dict[str, str]:
        """The winner, how far the others are behind, and what went wrong."""
        said = {"best": self.best, "data": f"{self.fit.num_rows:,} rows"}
        near = []
        for name, line in self.table.iterrows():
            if str(name) not in self.fits:
                said[str(name)] = f"failed: {line['message']}"
                continue
            text = f"elpd {line['elpd']:.1f} (se {line['se']:.1f})"
            if name != self.best:
                text = f"{-line['elpd_diff']:.1f} nats lower (se {line['dse']:.1f})"
                near += [str(name)] if -line["elpd_diff"] < CLEAR * line["dse"] else []
            doubtful = f", rows flagged: {line['flagged']:.0f}" if line["flagged"] else ""
            state = "" if line["converged"] else f", not converged: {line['message']}"
            said[str(name)] = f"{text}, {line['seconds']:.1f} s{doubtful}{state}"
        said["note"] = f"no clear difference from {', '.join(near)}" if near else ""
        return said


@call("choose")
@own_modes()
def choose(
    layers: Sequence[LastLayer] | Mapping[str, LastLayer] | None,
    data: Any,
    backbone: nn.Module | None = None,
    inference: Inference | None = None,
    *,
    sample_weight: Any = None,
    exposure: Any = None,
    seed: int = 0,
    store: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 256,
) -> Choice:
    """Fit several declarations on the same rows, and choose the one with the highest leave-one-out density.

    Features are made once, and the fits take turns on them. Each row's density is that of the fit without the row, by
    :func:`bll_pyro.loo`: nothing is fitted twice. The sum over the rows decides, with their weights: the highest wins, however
    small the difference, since that predicts best on average. A difference of less than two standard errors is no evidence,
    and the print names those that are as near.

    A row is left out of the last layer, and not of the backbone. Features of rows that the backbone was trained on are too
    good: densities are too high there, and an overfitted network makes light tails look better than they are on new rows.
    Choose on rows that the backbone has not seen where there are some.

    Parameters
    ----------
    layers
        At least two declarations, by name or in a list; in a list the name is the likelihood's, or, where that says too
        little, the declaration. None takes the likelihoods that suit the targets: ``Poisson`` and ``NegativeBinomial`` where
        they are whole numbers >= 0 of an integer type, or have an exposure, else ``Gaussian``, ``StudentT`` and
        ``HeteroscedasticGaussian``.
    data, backbone, inference, sample_weight, exposure, seed, store, device, batch_size
        As in :func:`bll_pyro.fit`, the same for all. The backbone stays as it is.

    Returns
    -------
    Choice
        ``fit``, the winner's, equal to that of :func:`bll_pyro.fit`; ``table``; ``fits`` and ``loos`` by name.

    Raises
    ------
    ValueError
        Before anything is fitted, and with the name of the declaration, if targets, exposure, prior or inference do not suit
        it; if densities of numbers and probabilities would be compared; after all, if every fit has failed.

    Warns
    -----
    FitWarning
        Of each fit that failed or did not go as it should, with its name. One that failed cannot win.
    """
    inference = DEFAULT if inference is None else inference
    check_kinds(inference, backbone)
    check_device(device, "choose")
    declared = None if layers is None else named(layers)
    source = read(bundled(data, sample_weight, exposure), need_targets=True, min_rows=2)
    check_inference(inference, source.columns)
    if declared is not None:
        check_targets_of(declared, source)  # before the backbone runs
    folder = None if store is None else user_path(store)
    with isolated(seed):
        rows = _on_features(source, backbone, folder, device, batch_size)
    if declared is None:
        declared = suited_to(rows)
    check_all(declared, inference, rows)
    candidates = {}
    with stage("choose", len(declared)) as done:
        for name, layer in declared.items():
            with stage(name):
                candidates[name] = _candidate(layer, rows, inference, seed, device)
            done.advance()
    table = _table(candidates, rows.columns.weight)
    for name, one in candidates.items():
        for message in one.messages:
            warnings.warn(f"{name}: {message}", FitWarning, stacklevel=4)  # past the decorators
    recorded = None if backbone is None else Recorded(backbone)
    return Choice(
        table,
        {name: one.loo for name, one in candidates.items() if one.loo is not None},
        {
            name: replace(
                one.fit,
                backbone=backbone,
                store=folder,
                recorded=recorded,
                feature_names=source.feature_names,
            )
            for name, one in candidates.items()
            if one.fit is not None
        },
    )


def _on_features(
    source: Source,
    backbone: nn.Module | None,
    store: Path | None,
    device: str | torch.device | None,
    batch_size: int,
) -> Source:
    """The rows as features in memory or in a store: all that runs code of the user's runs here, once."""
    if backbone is None and (source.stored is not None or source.tensors() is not None):
        return source
    features = extract_source(backbone, source, store=store, batch_size=batch_size, device=device)
    made = read(
        features if backbone is not None else (features.tensor(), features.targets), need_targets=True
    )
    made.columns, made.classes = source.columns, source.classes
    return made


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A declaration that was fitted: its fit and leave-one-out, or, where it failed, only the message."""

    seconds: float
    messages: list[str]
    fit: Fit | None = None
    loo: ELPDData | None = None


def _candidate(
    layer: LastLayer, rows: Source, inference: Inference, seed: int, device: str | torch.device | None
) -> _Candidate:
    began = time.perf_counter()
    try:
        with without_warnings(category=FitWarning):  # they are in the trace, and said with the name
            made = fit(layer, rows, inference=inference, seed=seed, device=device)
        with without_warnings("Estimated shape parameter of Pareto"):  # the column `flagged` reports it
            result = loo(made, rows)
    except BROKEN as error:
        return _Candidate(time.perf_counter() - began, [f"the fit failed: {error}"])
    seconds = time.perf_counter() - began
    if not np.isfinite(result.elpd_i).all():
        return _Candidate(seconds, [*made.trace.messages, "leave-one-out densities are not finite"])
    return _Candidate(seconds, list(made.trace.messages), made, result)


def _table(candidates: Mapping[str, _Candidate], weight: Tensor | None) -> pd.DataFrame:
    """One line for each candidate, the best first and those that failed last."""
    import pandas as pd

    times = 1.0 if weight is None else weight.double().cpu().numpy()
    by_row = {
        name: times * np.asarray(one.loo.elpd_i) for name, one in candidates.items() if one.loo is not None
    }
    if not by_row:
        said = "; ".join(f"{name}: {one.messages[-1]}" for name, one in candidates.items())
        raise ValueError(f"choose: expected a fit that does not fail, got none; {said}")
    ranked = sorted(by_row, key=lambda name: -by_row[name].sum())
    lines: dict[str, dict[str, Any]] = {}
    for name in [*ranked, *(name for name in candidates if name not in by_row)]:
        one, line = candidates[name], dict.fromkeys(DENSITIES, np.nan)
        if one.fit is not None and one.loo is not None:
            difference = by_row[name] - by_row[ranked[0]]
            line["elpd"], line["elpd_diff"] = by_row[name].sum(), difference.sum()
            line["se"], line["dse"] = (len(d) ** 0.5 * d.std() for d in (by_row[name], difference))
            line["influence"], line["flagged"] = float(np.max(one.loo.pareto_k)), num_flagged(one.loo)
        is_converged = one.fit is not None and one.fit.trace.converged
        lines[name] = {
            **line,
            "seconds": one.seconds,
            "converged": is_converged,
            "message": "; ".join(one.messages),
        }
    return pd.DataFrame.from_dict(lines, orient="index")
