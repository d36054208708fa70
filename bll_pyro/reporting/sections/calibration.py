"""Whether probabilities and intervals mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bll_pyro import metrics, plots
from bll_pyro.plots.coverage import shares_inside
from bll_pyro.prediction import (
    ClassPrediction,
    LabelPrediction,
    OrdinalPrediction,
    Prediction,
    ValuePrediction,
)
from bll_pyro.reporting.blocks import Chart, Finding, Section, percent
from bll_pyro.reporting.material import Material
from bll_pyro.reporting.pictures import SIZE, untitled

NUM_BINS = 10
PROBS = (0.5, 0.8, 0.9, 0.95)  # of the intervals whose coverage is a metric


def calibration_section(material: Material) -> Section | None:
    """Reliability for classes and labels; PIT, intervals and residuals for numbers; all but residuals for ordered classes."""
    if material.rows is None:
        return None
    section = Section(
        "Calibration",
        "calibration",
        "Whether a probability of 80 % comes true in 80 % of the cases, and whether an interval holds as many targets as it says.",
    )
    prediction = material.prediction
    if isinstance(prediction, ClassPrediction | LabelPrediction):
        _reliability(section, material)
    if isinstance(prediction, OrdinalPrediction | ValuePrediction):
        sampled, of_sample = material.sampled, material.labels_of_sample
        assert isinstance(sampled, OrdinalPrediction | ValuePrediction)
        section.blocks += [
            _transform(section, sampled, of_sample, material),
            _intervals(section, sampled, of_sample, material),
        ]
    if isinstance(prediction, ValuePrediction):
        section.blocks.append(_residuals(material.sampled, material))
    return section if section.blocks else None


def _reliability(section: Section, material: Material) -> None:
    prediction, targets = material.prediction, material.targets
    assert isinstance(prediction, ClassPrediction | LabelPrediction)
    pooled = (
        _pooled(prediction) if isinstance(prediction, LabelPrediction) and targets.dim() > 1 else prediction
    )
    flat = targets.flatten()
    found = metrics.reliability(pooled.probs, flat, NUM_BINS)
    filled = found.count > 0
    gap = found.accuracy[filled] - found.confidence[filled]
    inside = (found.lower[filled] <= found.confidence[filled]) & (
        found.confidence[filled] <= found.upper[filled]
    )
    mean = float(np.average(gap, weights=found.count[filled]))
    direction = "above" if mean > 0 else "below"
    seen = (
        f"Reliability diagram: of {int(filled.sum())} bins of confidence with rows, {int(inside.sum())} agree with the "
        f"diagonal within their "
        f"interval; the share that was right is {abs(mean):.3f} {direction} the mean confidence over all rows."
    )
    all_labels = " All labels are taken together." if targets.dim() > 1 else ""
    section.blocks.append(
        Chart(
            "Reliability",
            lambda: untitled(plots.reliability_diagram(pooled, flat, num_bins=NUM_BINS, size=SIZE)),
            "Points on the dashed diagonal are calibrated, below it the fit is too sure, above it too timid; bars are "
            "95 % intervals, "
            f"and the pale columns show how many rows there are.{all_labels}",
            seen,
        )
    )
    if isinstance(prediction, ClassPrediction):
        way = "too timid" if mean > 0 else "too sure"
        section.findings.append(
            Finding(
                f"Confidence is {100 * abs(mean):.1f} points {way} on average; {int(inside.sum())} of {int(filled.sum())} bins of "
                "confidence agree with what came true."
            )
        )
    names = ("confidence", "accuracy", "count", "lower", "upper")
    section.details["reliability"] = {name: getattr(found, name).tolist() for name in names}


def _pooled(prediction: LabelPrediction) -> LabelPrediction:
    """All labels of all rows as if each were a row; for what looks at probabilities alone."""
    parts = {
        name: getattr(prediction, name).flatten() for name in ("probs", "total", "aleatoric", "epistemic")
    }
    return replace(prediction, **parts, error=None)


def _transform(section: Section, prediction: Any, targets: Any, material: Material) -> Chart:
    values = prediction.pit(targets, material.seed) if _is_discrete(prediction) else prediction.cdf(targets)
    found = metrics.pit(values.double().clamp(0, 1).flatten().cpu().numpy())
    section.metrics["pit_distance"], section.metrics["pit_p_value"] = found.statistic, found.p_value
    counts = np.histogram(found.values, 10, (0, 1))[0] / len(found.values) * 10
    ends, middle = float(counts[[0, -1]].mean()), float(counts[4:6].mean())
    shape = (
        "a U, so the predictions are too narrow"
        if ends > 1.25
        else "a hump, so they are too wide"
        if middle > 1.25
        else "nearly flat"
    )
    section.findings.append(
        Finding(
            f"The probability transform of the targets is {shape if 'flat' in shape else 'shaped like ' + shape} "
            f"(largest distance from "
            f"uniform {found.statistic:.3f})."
        )
    )
    return Chart(
        "Probability integral transform",
        lambda: untitled(plots.pit_histogram(prediction, targets, size=SIZE)),
        "Each target is placed within its own predicted distribution; right predictions give columns of equal height "
        "inside the grey "
        f"band, a hump means too wide, a U too narrow, a slope a bias.{material.of_sample}",
        f"Histogram of the probability integral transform: the ten columns are between {counts.min():.2f} and "
        f"{counts.max():.2f} high, "
        "where 1 is right.",
    )


def _intervals(section: Section, prediction: Any, targets: Any, material: Material) -> Chart:
    found, _ = shares_inside(prediction, targets, PROBS)
    shares = dict(zip(PROBS, found, strict=True))
    section.metrics |= {f"coverage_{round(100 * prob)}": share for prob, share in shares.items()}
    said = ", ".join(f"{percent(prob, 0)} intervals hold {percent(share)}" for prob, share in shares.items())
    of_whole = " Intervals of whole numbers hold at least what they say." if _is_discrete(prediction) else ""
    return Chart(
        "Coverage of intervals",
        lambda: untitled(plots.coverage_of_intervals(prediction, targets, size=SIZE)),
        f"Points on the diagonal are right, below it intervals are too narrow, above it too wide.{of_whole}{material.of_sample}",
        f"Coverage of central intervals against their probability: {said}.",
    )


def _residuals(prediction: Prediction, material: Material) -> Chart:
    assert isinstance(prediction, ValuePrediction)
    targets = material.targets[material.sample.to(material.targets.device)]
    standardized = (
        (targets.to(prediction.mean).view_as(prediction.mean) - prediction.mean) / prediction.scale
    ).double()
    beyond = float((standardized.abs() > 2).double().mean())
    draw: Callable[[], Any] = lambda: untitled(plots.residuals(prediction, targets, size=SIZE))  # noqa: E731
    return Chart(
        "Residuals against the prediction",
        draw,
        "An even band around zero is right; a bend is a mean that misses something, a funnel a spread that does not "
        "follow the noise. "
        f"About 95 % should lie between the dashed lines.{material.of_sample}",
        f"Residuals in predictive standard deviations against the predicted mean: {percent(beyond)} lie beyond plus or minus "
        f"2, and their mean is "
        f"{float(standardized.mean()):.2f}.",
    )


def _is_discrete(prediction: Any) -> bool:
    return isinstance(prediction, OrdinalPrediction) or prediction.mixture.likelihood.is_count
