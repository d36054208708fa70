"""Scores of a fit on test rows, compared with a point estimate, both also after recalibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bll_pyro import metrics
from bll_pyro.checks import fitted
from bll_pyro.fitting import Fit, fit
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.guides import MAP
from bll_pyro.inference.svi.svi import SVI
from bll_pyro.metrics.arrays import mean_of_rows
from bll_pyro.observation import call
from bll_pyro.ood import Detector
from bll_pyro.ood.learning import least_rows
from bll_pyro.prediction import ClassPrediction, LabelPrediction, Prediction, ValuePrediction
from bll_pyro.recalibrate import calibrate
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    import pandas as pd

COVERAGE = 0.9  # probability of the central intervals
Scores = dict[str, float | None]  # value by name of the score


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores by head; ``print`` shows a table.

    Parameters
    ----------
    scores
        ``{head: {score: value}}``; None for a score that a head does not have (the epistemic uncertainty of a point
        estimate).
    standard_errors
        ``{head: {score: standard error}}``, over independent test rows; None where there is no score, NaN for a single row.
    gains
        ``{head: (nats, standard error)}``: by how much its NLL is below that of the plain head, paired row by row. It tells two
        heads apart where the standard errors of each alone, which they share, do not.
    """

    scores: dict[str, Scores]
    standard_errors: dict[str, Scores] = field(default_factory=dict)
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row per head."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.scores, orient="index").astype(float)

    def __str__(self) -> str:
        names = list(next(iter(self.scores.values())))
        width = max(map(len, self.scores))
        widths = [max(len(name), 7) for name in names]
        lines = [" ".join([" " * width, *(n.rjust(w) for n, w in zip(names, widths, strict=True))])]
        for head, row in self.scores.items():
            cells = ["-" if row[n] is None else f"{row[n]:.4f}" for n in names]
            lines.append(
                " ".join([head.ljust(width), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
            )
        return "\n".join(lines)


@call("evaluate")
@own_modes()
def evaluate(
    fit: Fit,
    inputs: Any,
    targets: Any = None,
    *,
    held_out: Any,
    train: Any = None,
    plain: Fit | None = None,
    unknown: Any = None,
) -> Evaluation:
    """Score a fit and a plain head on test rows, both as they are and recalibrated on held-out rows.

    "As they are" is with the recalibration that they have, if any; that of the held-out rows takes its place.

    ================= ======================================================================
    targets           scores
    ================= ======================================================================
    classes, labels   accuracy, NLL (nats), Brier score, ECE (15 bins)
    values, counts    NLL (nats, user's units), RMSE, coverage of the 90 % interval, its width
    with ``unknown``  AUROC of unknown against test rows by ``total``, by ``epistemic`` and by the
                      default detector; shares of test rows that raise a false alarm, and of
                      unknown rows that are caught, at ``alpha = 0.05``
    ================= ======================================================================

    Parameters
    ----------
    fit
        The fit to evaluate.
    inputs, targets
        Test rows, not used for any choice: together in any form that :func:`bll_pyro.fit` takes, or as two arguments. Rows with
        weights count by them in every mean; counts are predicted at their exposures.
    held_out
        Inputs and targets of the rows for the recalibration, in the same forms.
    train, plain
        The plain head is ``plain``, a fit of a point estimate; or it is fitted here, with the same declaration and MAP, to
        the training rows ``train``. Give one of the two.
    unknown
        Inputs from outside the training distribution. The detector, :class:`bll_pyro.ood.Detector` without a score, is calibrated
        on ``held_out``, with ``train`` where that is given; with too few held-out rows (40, or 80 without ``train``) its scores are
        None. Recalibration does not change it.

    Raises
    ------
    ValueError
        If neither or both of ``train`` and ``plain`` are given.
    """
    if (train is None) == (plain is None):
        raise ValueError(
            "evaluate: expected either train=(inputs, targets) or plain=fit, for the plain head of the comparison, got "
            f"{'neither' if train is None else 'both'}"
        )
    fitted(fit, "evaluate")
    if plain is not None:
        fitted(plain, "evaluate(plain=...)")
    fit = replace(fit, detector=None)
    if plain is None:
        plain = _plain_head(fit, train)
    heads = {"plain head": plain, "Bayesian": fit}
    rows = {}
    alarms = {}
    for name, head in heads.items():
        rows[name] = head
        alarms[name] = (
            Scored() if unknown is None else _alarms(head, inputs, targets, held_out, train, unknown)
        )
        if fit.layer.likelihood.is_count:
            continue  # counts cannot be recalibrated
        rows[f"{name}, calibrated"] = calibrate(head, held_out)
    found = {name: _scores(head, inputs, targets, unknown) for name, head in rows.items()}
    base = found["plain head"]
    return Evaluation(
        {name: one.values | alarms[name.removesuffix(", calibrated")].values for name, one in found.items()},
        {name: one.errors | alarms[name.removesuffix(", calibrated")].errors for name, one in found.items()},
        {name: _gain(one, base) for name, one in found.items() if name != "plain head"},
    )


def _plain_head(like: Fit, train: Any) -> Fit:
    """The declaration of a fit with a point estimate, on the features of the fit."""
    rows, layer = like.rows(train, what="train"), like.layer
    if layer.standardize is True:  # the features no longer tell whether they were a table
        layer = replace(layer, standardize=like.posterior.frame.feature_scale)
    point = fit(layer, rows.data, inference=SVI(guide=MAP()), seed=like.seed)
    return replace(
        point, backbone=like.backbone, store=like.store, recorded=like.recorded, recalibration=None
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of one head, their standard errors, and the log probability of each row, nats ``[N]``, with the rows' weights."""

    values: Scores = field(default_factory=dict)
    errors: Scores = field(default_factory=dict)
    log_prob: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weight: Tensor | None = None

    def add(self, name: str, value: float | None, error: float | None) -> None:
        """Take a score with its standard error."""
        self.values[name], self.errors[name] = value, error


def score_rows_of(prediction: Prediction, rows: LabelledRows) -> Scored:
    """Scores of the prediction of rows with targets, each with its standard error."""
    given, weight = rows.given, rows.columns.weight
    log_prob = prediction.log_prob(rows.labels).double().cpu().numpy()
    found = Scored(log_prob=log_prob, weight=weight)

    def mean(name: str, by_row: np.ndarray, value: float | None = None) -> None:
        value = mean_of_rows(by_row, weight) if value is None else value
        is_finite = bool(np.isfinite(by_row).all())
        found.add(
            name, value, metrics.standard_error(by_row, sample_weight=weight) if is_finite else math.nan
        )

    if isinstance(prediction, ClassPrediction | LabelPrediction):
        probs, targets = prediction.probs.double().cpu().numpy(), given.long().cpu().numpy()
        is_class = probs.ndim > targets.ndim
        hit = probs.argmax(1) == targets if is_class else (probs > 0.5) == targets
        truth = targets[:, None] == np.arange(probs.shape[1]) if is_class else targets
        mean("accuracy", hit.astype(float), metrics.accuracy(probs, targets, sample_weight=weight))
        mean("NLL", -log_prob)
        squares = ((probs - truth) ** 2).reshape(len(probs), -1).sum(1)
        mean("Brier", squares, metrics.brier(probs, targets, sample_weight=weight))
        error = metrics.ece_standard_error(probs, targets, sample_weight=weight)
        found.add("ECE", metrics.ece(probs, targets, sample_weight=weight), error)
        return found
    mean("NLL", -log_prob)
    if isinstance(prediction, ValuePrediction):
        _score_values(mean, prediction, given, weight)
    return found


def _score_values(mean: Any, prediction: ValuePrediction, given: Tensor, weight: Tensor | None) -> None:
    """RMSE, and coverage and width of the central intervals."""
    lower, upper = (end.double().cpu().numpy() for end in prediction.interval(COVERAGE))
    targets, centre = given.double().cpu().numpy(), prediction.mean.double().cpu().numpy()
    rmse = metrics.rmse(centre, targets, sample_weight=weight)
    # the root of a mean: a change of the mean by d changes the root by d / (2 rmse)
    mean("RMSE", (centre - targets) ** 2 / (2 * rmse if rmse > 0 else 1.0), rmse)
    mean("coverage", ((lower <= targets) & (targets <= upper)).astype(float))
    mean("width", upper - lower)


def _scores(head: Fit, inputs: Any, given: Any, unknown: Any) -> Scored:
    rows = head.rows(inputs, given)
    weight = rows.columns.weight
    prediction = head.head.predict(rows.data)
    found = score_rows_of(prediction, rows)
    if unknown is None:
        return found
    ood_prediction = head.predict(unknown)
    is_point = isinstance(head.inference, SVI) and isinstance(head.inference.guide, MAP)
    for name in ("total", "epistemic"):
        value = error = None
        if name == "total" or not is_point:
            known, far = _row(prediction, name), _row(ood_prediction, name)
            value = metrics.auroc(known, far, sample_weight=weight)
            error = metrics.auroc_standard_error(known, far) if weight is None else None
        found.add(f"AUROC {name}", value, error)
    return found


def _gain(head: Scored, plain: Scored) -> tuple[float, float]:
    by_row = head.log_prob - plain.log_prob
    is_finite = bool(np.isfinite(by_row).all())
    error = metrics.standard_error(by_row, sample_weight=head.weight) if is_finite else math.nan
    return mean_of_rows(by_row, head.weight), error


def _alarms(head: Fit, inputs: Any, given: Any, held_out: Any, train: Any, unknown: Any) -> Scored:
    """How the default detector of a head tells unknown from test rows."""
    known, held = head.rows(inputs, given), head.rows(held_out, what="held_out").features
    learned_from = None
    if train is not None:
        rows = head.rows(train, what="train")
        learned_from = (rows.features, rows.labels)
    found = Scored()
    detector = Detector()
    if len(held) < least_rows(detector.alpha, 1 if train is not None else 2):
        for name in ("AUROC detector", "false alarms", "caught"):
            found.add(name, None, None)
        return found
    detector = detector.calibrate(head.head, held, train=learned_from)
    usual, far = (detector.detect(features) for features in (known.features, head.features(unknown)))
    weight = known.columns.weight
    auroc = metrics.auroc(usual.score, far.score, sample_weight=weight)
    error = metrics.auroc_standard_error(usual.score, far.score) if weight is None else None
    found.add("AUROC detector", auroc, error)
    alarm, caught = usual.is_ood.double().cpu().numpy(), far.is_ood.double().cpu().numpy()
    found.add(
        "false alarms", mean_of_rows(alarm, weight), metrics.standard_error(alarm, sample_weight=weight)
    )
    found.add("caught", float(caught.mean()), metrics.standard_error(caught))
    return found


def _row(prediction: Prediction, name: str) -> Tensor:
    values: Tensor = getattr(prediction, name)
    return values if values.dim() == 1 else values.sum(-1)
