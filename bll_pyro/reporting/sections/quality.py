"""How good the predictions are: scores with standard errors, beside the plain head, and class by class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bll_pyro.diagnostics import Grade
from bll_pyro.evaluation import Scores
from bll_pyro.metrics import auroc, ece
from bll_pyro.prediction import ClassPrediction, LabelPrediction
from bll_pyro.reporting.blocks import (
    Cell,
    Finding,
    Section,
    SortableTable,
    Tile,
    first_rows,
    number,
    percent,
    short_name,
    signed,
    whole,
    with_errors,
)
from bll_pyro.reporting.material import Material

# score: name for ``bll check``, and what it means
MEANINGS = {
    "accuracy": ("accuracy", "share of right decisions; higher is better"),
    "NLL": ("nll", "negative log likelihood of the targets, nats a row; lower is better"),
    "Brier": ("brier", "squared error of the probabilities; lower is better"),
    "ECE": ("ece", "distance of confidence and share of right; lower is better"),
    "RMSE": ("rmse", "root mean squared error, unit of the target; lower is better"),
    "coverage": ("coverage", "share of targets inside the 90 % interval; 0.9 is right"),
    "width": ("width", "mean width of the 90 % interval, unit of the target"),
    "AUROC total": ("auroc_total", "rows from elsewhere told apart by total uncertainty; higher is better"),
    "AUROC epistemic": ("auroc_epistemic", "the same by epistemic uncertainty"),
    "AUROC detector": ("auroc_detector", "the same by the detector's score"),
    "false alarms": ("false_alarms", "share of known rows that raise an alarm"),
    "caught": ("caught", "share of rows from elsewhere that raise an alarm"),
}
HEADS = {
    "Bayesian": "",
    "Bayesian, calibrated": "calibrated_",
    "plain head": "plain_",
    "plain head, calibrated": "plain_calibrated_",
}
TITLES = {
    "Bayesian": "this fit",
    "Bayesian, calibrated": "this fit, recalibrated",
    "plain head": "plain head",
    "plain head, calibrated": "plain head, recalibrated",
}
SURE = 2.0  # standard errors from which a difference is called clear


def quality_section(material: Material) -> Section | None:
    """Scores of the fit and of the heads beside it."""
    if material.rows is None:
        return None
    found = material.evaluation
    scores = {"Bayesian": material.scored.values} if found is None else found.scores
    errors = {"Bayesian": material.scored.errors} if found is None else found.standard_errors
    gains = {} if found is None else found.gains
    section = Section(
        "Quality",
        "quality",
        "How good the predictions are on rows that were not fitted. After ± stands the standard error, by which a score would "
        "vary with other rows of the same kind.",
        [_table(scores, errors, gains, material)],
        findings=[_headline(material)],
        tiles=_tiles(material),
    )
    for head, prefix in HEADS.items():
        for name, value in scores.get(head, {}).items():
            section.metrics[prefix + MEANINGS[name][0]] = value
            section.metrics[f"{prefix}{MEANINGS[name][0]}_se"] = errors[head][name]
        if head in gains:
            section.metrics[f"{prefix}nll_gain"], section.metrics[f"{prefix}nll_gain_se"] = gains[head]
    if "Bayesian" in gains:
        section.findings.append(_beside_plain(*gains["Bayesian"]))
    by_class = _by_class(material)
    if by_class is not None:
        table, details = by_class
        section.blocks.append(table)
        section.details["classes"] = details
    return section


def _table(
    scores: dict[str, Scores],
    errors: dict[str, Scores],
    gains: dict[str, tuple[float, float]],
    material: Material,
) -> SortableTable:
    """A line for each score, a column for each head."""
    heads = [head for head in HEADS if head in scores]
    rows = []
    for name, (_, meaning) in MEANINGS.items():
        if name not in scores["Bayesian"]:
            continue
        pairs = [(scores[head][name], errors[head][name]) for head in heads]
        rows.append([Cell(name, remark=meaning), *with_errors(pairs)])
        if name == "NLL" and gains:
            remark = "by how much the NLL is below that of the plain head, compared row by row"
            rows.append(
                [
                    Cell("NLL gained", remark=remark),
                    *with_errors([gains.get(head, (None, None)) for head in heads]),
                ]
            )
    note = (
        "The plain head is the same layer with one value for each weight (MAP). Recalibrated: with one number found on "
        "the held-out rows, a "
        "temperature for classes and labels, a factor of the noise for values."
    )
    if not gains:
        note = "With training and held-out rows the plain head would stand here, too, alone and with a temperature."
    if material.weight is not None:
        note += " Rows count by their weights; the pictures below count each once."
    columns = dict.fromkeys(["score", *(TITLES[head] for head in heads)], "")
    return SortableTable(f"Scores on {material.num_rows:,} rows", columns, rows, note)


def _headline(material: Material) -> Finding:
    values, errors = material.scored.values, material.scored.errors
    if "accuracy" in values:
        several = isinstance(material.prediction, LabelPrediction) and len(material.classes) > 1
        what = "labels" if several else "rows"
        error = errors["accuracy"] or 0.0
        spread = f" ± {100 * error:.1f}" if math.isfinite(error) else ""
        return Finding(
            f"{100 * (values['accuracy'] or 0.0):.1f}{spread} % of the {what} are decided rightly."
        )
    if "RMSE" in values:
        error = errors["RMSE"] or 0.0
        spread = f" ± {error:.3g}" if math.isfinite(error) else ""
        return Finding(
            f"Predicted means are off by {values['RMSE']:.4g}{spread} (root mean square, unit of the target); the 90 % interval "
            f"holds {percent(values['coverage'] or 0.0)} of the targets."
        )
    return Finding(f"The NLL is {values['NLL']:.4g} nats a row.")


def _tiles(material: Material) -> list[Tile]:
    """The scores that the summary shows."""
    found = []
    for name in ("accuracy", "NLL", "ECE", "RMSE", "coverage"):
        if name in material.scored.values:
            (cell,) = with_errors([(material.scored.values[name], material.scored.errors[name])])
            text, _, spread = cell.text.partition(" ± ")
            found.append(
                Tile(name, text, f"± {spread}" if spread else "", MEANINGS[name][1].partition(";")[0])
            )
    return found


def _beside_plain(gain: float, error: float) -> Finding:
    how = f"{abs(gain):.4f} ± {error:.4f} nats a row"
    if not math.isfinite(gain) or not math.isfinite(error) or abs(gain) <= SURE * error:
        return Finding(
            f"The NLL is not clearly different from that of the plain head ({signed(-gain)} ± {error:.4f} nats a row)."
        )
    if gain > 0:
        return Finding(f"The NLL is lower, that is better, than that of the plain head, by {how}.", Grade.OK)
    return Finding(f"The NLL is higher, that is worse, than that of the plain head, by {how}.", Grade.LOOK)


def _by_class(material: Material) -> tuple[SortableTable, list[dict[str, Any]]] | None:
    """Class by class, or label by label."""
    prediction, targets = material.prediction, material.targets.long().cpu().numpy()
    if isinstance(prediction, ClassPrediction):
        details = _classes(material, targets)
        columns = {
            "class": "",
            "rows": "rows of this class",
            "recall": "share of the rows of this class that are decided for it",
            "precision": "share of the decisions for this class that are right",
            "epistemic": "mean epistemic uncertainty of its rows, nats",
        }
        caption, what = "Class by class", "classes"
    elif isinstance(prediction, LabelPrediction) and targets.ndim == 2:
        details = _labels(material, targets)
        columns = {
            "label": "",
            "share of 1": "how often the label is 1",
            "accuracy": "share of right decisions",
            "AUROC": "probability that a row with a 1 gets the larger probability",
            "ECE": "expected calibration error",
        }
        caption, what = "Label by label", "labels"
    else:
        return None
    order = sorted(details, key=lambda one: -one["rows"]) if "rows" in details[0] else details
    rows = [
        [
            Cell(short_name(one["name"])),
            *(whole(v) if isinstance(v, int) else number(v) for k, v in one.items() if k != "name"),
        ]
        for one in order
    ]
    shown, note = first_rows(rows, what)
    if any(one.get("rows") == 0 for one in details):
        note = f"A class without rows has no recall. {note}".strip()
    return SortableTable(caption, columns, shown, note), details


def _classes(material: Material, targets: np.ndarray) -> list[dict[str, Any]]:
    prediction = material.prediction
    assert isinstance(prediction, ClassPrediction)
    decided, names = material.decided.cpu().numpy(), material.classes
    size = len(names)
    of_class, of_decision = np.bincount(targets, minlength=size), np.bincount(decided, minlength=size)
    right = np.bincount(targets[decided == targets], minlength=size)
    epistemic = np.bincount(targets, material.by_row("epistemic"), size)
    with np.errstate(invalid="ignore"):  # 0 / 0 of a class without rows
        columns = (right / of_class, right / of_decision, epistemic / of_class)
    named = dict(zip(("recall", "precision", "epistemic"), columns, strict=True))
    return [
        {
            "name": names[k],
            "rows": int(of_class[k]),
            **{name: float(values[k]) for name, values in named.items()},
        }
        for k in range(size)
    ]


def _labels(material: Material, targets: np.ndarray) -> list[dict[str, Any]]:
    prediction = material.prediction
    assert isinstance(prediction, LabelPrediction)
    probs = prediction.probs.double().cpu().numpy()
    found = []
    for t, name in enumerate(material.classes):
        p, y = probs[:, t], targets[:, t]
        both = 0 < y.sum() < len(y)
        found.append(
            {
                "name": name,
                "share": float(y.mean()),
                "accuracy": float(((p > 0.5) == y).mean()),
                "auroc": auroc(p[y == 0], p[y == 1]) if both else math.nan,
                "ece": ece(p, y),
            }
        )
    return found
