"""Pictures of what is done with uncertainty show the numbers they come from."""

import numpy as np
import pytest
import torch

import bll_pyro as bll

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(600, 3, generator=GENERATOR)
LABELS = (INPUTS[:, 0] + 0.7 * torch.randn(600, generator=GENERATOR) > 0).long()


@pytest.fixture(scope="module")
def fit():
    layer = bll.LastLayer(bll.likelihoods.Categorical(2))
    return bll.fit(layer, (INPUTS[:100], LABELS[:100]), inference=bll.SVI(num_epochs=100))


def test_reliability_diagram(fit):
    prediction, targets = fit.predict(INPUTS[300:]), LABELS[300:]
    figure = bll.plots.reliability_diagram({"first": prediction, "again": prediction}, targets, num_bins=8)
    (axes,) = figure.axes
    found = bll.metrics.reliability(prediction.probs, targets, 8)
    there = found.count > 0
    points = axes.containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), found.confidence[there])
    np.testing.assert_allclose(points.get_ydata(), found.accuracy[there])
    ends = np.array([segment[:, 1] for segment in axes.containers[0].lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([found.lower[there], found.upper[there]], -1))
    bars = next(c for c in axes.containers if hasattr(c, "patches"))
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    assert f"first, ECE {found.ece:.3f}" in [t.get_text() for t in axes.get_legend().get_texts()]


def test_ood_scores(fit):
    detector = bll.ood.Detector(alpha=0.1).calibrate(fit, INPUTS[100:300])
    verdict = detector.detect(5 * INPUTS[300:])
    figure = bll.plots.ood_scores(detector, INPUTS[300:], verdict, num_bins=20)
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata()[0] == detector.threshold
    heights = np.array([[bar.get_height() for bar in group] for group in axes.containers])
    np.testing.assert_allclose(heights.sum(1), [1, 1])
    edges = np.array([bar.get_x() for bar in axes.containers[1]])
    scores = verdict.score.double().numpy()
    np.testing.assert_allclose(heights[1][3:].sum(), np.mean(scores >= edges[3]), atol=1e-6)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"unknown: {100 * verdict.is_ood.double().mean():.1f} % raise an alarm" in texts


def test_risk_coverage(fit):
    prediction = fit.predict(INPUTS[300:])
    error = prediction.label != LABELS[300:]
    figure = bll.plots.risk_coverage({"total": prediction.total, "epistemic": prediction.epistemic}, error)
    curve = bll.metrics.risk_coverage(prediction.total, error)
    line, _, everything = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), curve.coverage)
    np.testing.assert_allclose(line.get_ydata(), curve.risk)
    assert everything.get_ydata()[0] == pytest.approx(float(error.double().mean()))
