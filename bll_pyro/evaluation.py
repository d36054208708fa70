"""Scores of a fit on test rows, compared with a point estimate, both also after recalibration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bll_pyro import metrics
from bll_pyro.checks import fitted
from bll_pyro.fitting import Fit, fit
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
    """

    scores: dict[str, Scores]

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
        alarms[name] = {} if unknown is None else _alarms(head, inputs, targets, held_out, train, unknown)
        if fit.layer.likelihood.is_count:
            continue  # counts cannot be recalibrated
        rows[f"{name}, calibrated"] = calibrate(head, held_out)
    found = {name: _scores(head, inputs, targets, unknown) for name, head in rows.items()}
    return Evaluation(
        {name: scores | alarms[name.removesuffix(", calibrated")] for name, scores in found.items()}
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


def _has_several_labels(fit: Fit) -> bool:
    return fit.layer.likelihood.is_binary and fit.posterior.target_shape != ()


def _scores(head: Fit, inputs: Any, given: Any, unknown: Any) -> Scores:
    rows = head.rows(inputs, given)
    targets, weight = rows.given, rows.columns.weight
    prediction = head.head.predict(rows.data)
    log_prob = prediction.log_prob(rows.labels).double().cpu().numpy()
    found: Scores = {"NLL": -mean_of_rows(log_prob, weight)}
    if isinstance(prediction, ClassPrediction | LabelPrediction):
        probs = prediction.probs
        found = {"accuracy": metrics.accuracy(probs, targets, sample_weight=weight), **found}
        found["Brier"] = metrics.brier(probs, targets, sample_weight=weight)
        if not _has_several_labels(head):
            found["ECE"] = metrics.ece(probs, targets, sample_weight=weight)
    elif isinstance(prediction, ValuePrediction):
        lower, upper = prediction.interval(COVERAGE)
        found["RMSE"] = metrics.rmse(prediction.mean, targets, sample_weight=weight)
        found["coverage"] = metrics.coverage(lower, upper, targets, sample_weight=weight)
        found["width"] = metrics.sharpness(lower, upper, sample_weight=weight)
    if unknown is None:
        return found
    ood_prediction = head.predict(unknown)
    is_point = isinstance(head.inference, SVI) and isinstance(head.inference.guide, MAP)
    for name in ("total", "epistemic"):
        found[f"AUROC {name}"] = None
        if name == "total" or not is_point:
            known, far = _row(prediction, name), _row(ood_prediction, name)
            found[f"AUROC {name}"] = metrics.auroc(known, far, sample_weight=weight)
    return found


def _alarms(head: Fit, inputs: Any, given: Any, held_out: Any, train: Any, unknown: Any) -> Scores:
    """How the default detector of a head tells unknown from test rows."""
    known, held = head.rows(inputs, given), head.rows(held_out, what="held_out").features
    learned_from = None
    if train is not None:
        rows = head.rows(train, what="train")
        learned_from = (rows.features, rows.labels)
    found: Scores = dict.fromkeys(("AUROC detector", "false alarms", "caught"))
    detector = Detector()
    if len(held) < least_rows(detector.alpha, 1 if train is not None else 2):
        return found
    detector = detector.calibrate(head.head, held, train=learned_from)
    usual, far = (detector.detect(features) for features in (known.features, head.features(unknown)))
    weight = known.columns.weight
    found["AUROC detector"] = metrics.auroc(usual.score, far.score, sample_weight=weight)
    found["false alarms"] = mean_of_rows(usual.is_ood.double().cpu().numpy(), weight)
    found["caught"] = float(far.is_ood.double().mean())
    return found


def _row(prediction: Prediction, name: str) -> Tensor:
    values: Tensor = getattr(prediction, name)
    return values if values.dim() == 1 else values.sum(-1)
