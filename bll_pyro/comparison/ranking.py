"""``compare``: fits of the same rows ranked by their leave-one-out density, with stacking weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro import metrics
from bll_pyro.comparison.same_rows import by_name, check_fits, check_targets, check_trained_on
from bll_pyro.comparison.stack import Stack
from bll_pyro.elpd import loo
from bll_pyro.fitting import Fit
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.observation import call, stage
from bll_pyro.prediction import ClassPrediction, LabelPrediction, Prediction, ValuePrediction
from bll_pyro.scope import own_modes, without_warnings

if TYPE_CHECKING:
    import pandas as pd
    from arviz_stats.utils import ELPDData

INTERVAL = 0.9


@dataclass(frozen=True, eq=False)
class Comparison:
    """Fits of the same rows, the best first.

    Parameters
    ----------
    table
        One line for each fit, as ``az.compare`` gives it (``elpd``, ``p``, ``elpd_diff`` from the best and its standard error
        ``dse``, stacking ``weight``, ...), and besides: ``flagged``, the number of rows whose leave-one-out density is not
        reliable; ``seconds`` that the fit took; on held-out rows ``new_nll`` (nats a row) with its standard error
        ``new_nll_se``, and ``new_ece`` of classes and labels, or ``new_rmse`` and ``new_coverage`` of the 90 % interval of
        numbers.
    loos
        Leave-one-out results by name, pointwise.
    fits
        The fits by name.
    stacked_nll
        Negative log likelihood of the stack on the held-out rows, nats a row; None without held-out rows.
    """

    table: pd.DataFrame
    loos: dict[str, ELPDData]
    fits: dict[str, Fit]
    stacked_nll: float | None = None

    @property
    def best(self) -> str:
        """Name of the fit with the highest ELPD."""
        return str(self.table.index[0])

    @property
    def weights(self) -> dict[str, float]:
        """Stacking weights by name; they sum to 1."""
        return {str(name): float(weight) for name, weight in self.table["weight"].items()}

    @property
    def stack(self) -> Stack:
        """The fits together, each with its stacking weight: it predicts like a fit."""
        return Stack(self.fits, self.weights)

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def __str__(self) -> str:
        columns = [name for name in _SHOWN if name in self.table]
        text = self.table[columns].to_string(float_format=lambda value: f"{value:.4g}")
        if self.stacked_nll is not None:
            text += f"\n\nThe stack has a negative log likelihood of {self.stacked_nll:.4f} nats a row on the held-out rows."
        return text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return str(
            self.table[[name for name in _SHOWN if name in self.table]].to_html(float_format="{:.4g}".format)
        )


_SHOWN = (
    "elpd", "p", "elpd_diff", "dse", "weight", "flagged", "seconds", "new_nll", "new_nll_se", "new_ece", "new_rmse", "new_coverage",
)  # fmt: skip


@call("compare")
@own_modes()
def compare(
    fits: Mapping[str, Fit], data: Any, *, new_data: Any = None, num_rows: int | None = None, seed: int = 0
) -> Comparison:
    """Rank fits of the same rows by leave-one-out, and give each its stacking weight.

    The expected log predictive density of each fit is that of :func:`bll_pyro.loo`: in output space where the posterior
    is Gaussian, by PSIS where it is made of draws. Differences are paired row by row, and so are their standard errors
    (Vehtari, Gelman and Gabry 2017). Stacking weights maximise the leave-one-out density of the mixture (Yao et al. 2018).
    A difference below about 4 nats, or below twice its standard error, is not evidence (Sivula et al. 2020).

    Parameters
    ----------
    fits
        At least two fits by name: other priors, guides, inferences, likelihoods of the same kind of target, backbones.
    data
        The rows that all of them were fitted on, inputs and targets in any form that :func:`bll_pyro.fit` takes. Where fits
        take different inputs (other features of the same rows): a dict with the data of each, by name.
    new_data
        Held-out rows in the same form, for the columns ``new_*``.
    num_rows, seed
        Leave out only so many rows, the same ones for all fits; see :func:`bll_pyro.loo`.

    Raises
    ------
    ValueError
        When the fits were not made from the same rows and targets, or their densities cannot be compared.
    """
    check_fits(fits)
    data_of = by_name(fits, data, "data")
    new_data_of = None if new_data is None else by_name(fits, new_data, "new_data")
    import arviz_stats as azs

    loos, targets = {}, None
    with without_warnings("Estimated shape parameter of Pareto"):  # the column `flagged` reports it
        with stage("compare", len(fits)) as done:
            for name, fit in fits.items():
                rows = fit.rows(data_of[name])
                targets = rows if targets is None else targets
                check_targets("data", name, rows, targets)
                check_trained_on(name, fit, rows.features)
                with stage(name):
                    loos[name] = loo(fit.head, rows.data, num_rows, seed)
                done.advance()
        table = azs.compare(loos, round_to="none")
    table["flagged"] = [num_flagged(loos[name]) for name in table.index]
    table["seconds"] = [_seconds(fits[name]) for name in table.index]
    result = Comparison(table, loos, dict(fits))
    return result if new_data_of is None else _with_new_rows(result, new_data_of)


def _with_new_rows(result: Comparison, data_of: Mapping[str, Any]) -> Comparison:
    """Add the scores of each fit, and of the stack, on held-out rows."""
    predictions: dict[str, Prediction] = {}
    targets = None
    for name in result.table.index:
        rows = result.fits[name].rows(data_of[name], what="new_data")
        rows.columns.refused(
            "compare(new_data=...)", weight="its scores are means over rows: leave the weights out"
        )
        targets = rows if targets is None else targets
        check_targets("new_data", name, rows, targets)
        predictions[name] = result.fits[name].head.predict(rows.data)
        for column, value in _scores(predictions[name], targets).items():
            result.table.loc[name, column] = value
    assert targets is not None
    mixed = result.stack.mix(predictions)
    return replace(result, stacked_nll=-float(mixed.log_prob(targets.labels).double().mean()))


def num_flagged(result: ELPDData) -> int:
    """Number of rows whose leave-one-out density is not reliable."""
    influence = np.nan_to_num(np.asarray(result.pareto_k))
    return int((influence > result.good_k).sum())


def _seconds(fit: Fit) -> float:
    joint = fit.trace.joint
    return fit.trace.wall_time + (0.0 if joint is None else joint.wall_time)


def _scores(prediction: Prediction, rows: LabelledRows) -> dict[str, float]:
    log_prob, targets = prediction.log_prob(rows.labels).double(), rows.given
    scores = {
        "new_nll": -float(log_prob.mean()),
        "new_nll_se": float(log_prob.std()) / len(log_prob) ** 0.5,
    }
    match prediction:
        case ClassPrediction():
            scores["new_ece"] = metrics.ece(prediction.probs, targets)
        case LabelPrediction():
            probs, labels = prediction.probs.reshape(len(targets), -1), targets.reshape(len(targets), -1)
            each = [metrics.ece(probs[:, t], labels[:, t]) for t in range(probs.shape[1])]
            scores["new_ece"] = float(np.mean(each))
        case ValuePrediction():
            lower, upper = prediction.interval(INTERVAL)
            scores["new_rmse"] = metrics.rmse(prediction.mean, targets)
            scores["new_coverage"] = metrics.coverage(lower, upper, targets)
    return scores
