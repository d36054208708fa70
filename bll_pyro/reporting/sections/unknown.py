"""Inputs from outside the known distribution: the detector, its threshold, and its alarms."""

from __future__ import annotations

import math

from bll_pyro import metrics, plots
from bll_pyro.diagnostics import Grade
from bll_pyro.ood import Detector
from bll_pyro.reporting.blocks import Chart, Facts, Finding, Section, Text, percent
from bll_pyro.reporting.material import Material
from bll_pyro.reporting.pictures import SIZE, untitled

SURE = 0.01  # probability of as many alarms, or more, among known rows, below which they are called too many
ROUNDING = 1e-9  # of a product


def unknown_section(material: Material) -> Section:
    """Threshold, stated rate of false alarms, and alarms among the rows."""
    section = Section(
        "Unknown inputs",
        "unknown",
        "A detector compares each row with known rows that were kept for it, and raises an alarm for those that are "
        "further out than nearly "
        "all of them. Predictions for such rows should not be trusted.",
    )
    detector, verdict = material.detector, material.verdict
    if detector is None or verdict is None:
        section.blocks.append(
            Text(
                "There is no detector: fit.with_detector(...) adds one, and held_out= with at least 80 rows (40 where "
                "training rows are given, "
                "too) lets the report make one."
            )
        )
        return section
    is_ood = verdict.is_ood.double().cpu()
    share, number = float(is_ood.mean()), int(is_ood.sum())
    facts = {
        "Score": _in_words(detector),
        "Threshold": f"{detector.threshold:.4g}; a larger score raises an alarm",
        "Stated rate of false alarms": f"at most {percent(detector.alpha)} of known rows",
        "Rows behind the threshold": f"{len(detector.calibration_scores if detector.calibration_scores is not None else ()):,}",
        "Alarms among the judged rows": f"{number:,} of {len(is_ood):,} ({percent(share)})",
    }
    section.metrics |= {"alpha": detector.alpha, "threshold": detector.threshold, "alarms": share}
    far = None
    if material.unknown is not None:
        far = detector.detect(material.unknown)
        caught, auroc = float(far.is_ood.double().mean()), metrics.auroc(verdict.score, far.score)
        facts["Alarms among the rows from elsewhere"] = (
            f"{int(far.is_ood.sum()):,} of {len(far):,} ({percent(caught)})"
        )
        facts["AUROC"] = f"{auroc:.3f}, the probability that a row from elsewhere has the larger score"
        section.metrics |= {"caught": caught, "auroc": auroc}
        section.findings.append(Finding(f"Of the rows from elsewhere {percent(caught)} raise an alarm."))
    section.metrics = {f"ood_{name}": value for name, value in section.metrics.items()}
    section.findings.insert(0, _too_many(number, len(is_ood), detector))
    section.blocks.append(Facts(facts))
    if material.num_rows > 1:
        of_far = (
            f", of the rows from elsewhere {percent(float(far.is_ood.double().mean()))}"
            if far is not None
            else ""
        )
        section.blocks.append(
            Chart(
                "Scores of the detector",
                lambda: untitled(plots.ood_scores(detector, verdict, far, size=SIZE)),
                "The further right, the stranger a row; what lies right of the dashed threshold raises an alarm.",
                f"Histogram of the detector's scores: of the judged rows {percent(share)} lie above the threshold{of_far}.",
            )
        )
    return section


def _in_words(detector: Detector) -> str:
    """The name of the score, and the first line of what is written about it."""
    kind = type(detector.score)
    about = (kind.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return f"{kind.__name__}: {about[:1].lower()}{about[1:]}" if about else kind.__name__


def _too_many(number: int, num_rows: int, detector: Detector) -> Finding:
    """Whether known rows raise more alarms than the stated rate allows.

    With n calibration scores the alarms are the rows above the j-th largest of them, ``j = floor(alpha (n + 1))``: for exchangeable
    rows their number is beta-binomial with parameters j and n + 1 - j.
    """
    from scipy.stats import betabinom

    assert detector.calibration_scores is not None
    size = len(detector.calibration_scores)
    rank = max(1, math.floor(detector.alpha * (size + 1) + ROUNDING))
    said = (
        f"{percent(number / num_rows)} of the rows raise the alarm for unknown inputs; at most "
        f"{percent(detector.alpha)} are expected "
        "of known rows"
    )
    if float(betabinom.sf(number - 1, num_rows, rank, size + 1 - rank)) < SURE:
        return Finding(f"{said}: these rows are not like those of the calibration.", Grade.LOOK)
    return Finding(f"{said}.", Grade.OK)
