"""The fan chart and the PIT histogram show the numbers of the prediction."""

import numpy as np
import pytest
import scipy.stats
import torch

import bll_pyro as bll

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(50, generator=RANDOM)
FEATURES = torch.stack([X, X**2], 1)
Y = X + 0.3 * torch.randn(50, generator=RANDOM)


@pytest.fixture(scope="module")
def prediction():
    layer = bll.LastLayer(bll.likelihoods.HeteroscedasticGaussian())
    return bll.fit(layer, (FEATURES, Y), inference=bll.Laplace(bll.curvatures.Full())).predict(FEATURES)


def test_bands_and_median_are_quantiles(prediction):
    figure = bll.plots.fan_chart(prediction, X, data=(X, Y), probs=(0.5, 0.9), labels=("time", "value"))
    axes = figure.axes[0]
    order = X.argsort()
    median, points = axes.lines
    np.testing.assert_allclose(median.get_ydata(), prediction.quantile(0.5)[order])
    np.testing.assert_allclose(points.get_ydata(), Y)
    for band, prob in zip(axes.collections[1::2], (0.9, 0.5), strict=True):
        low, high = (end[order].numpy() for end in prediction.interval(prob))
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].min() == pytest.approx(low.min()) and corners[:, 1].max() == pytest.approx(
            high.max()
        )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "data", "median", "50% interval", "90% interval",
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time", "value")


def test_bars_are_the_histogram_and_the_band_is_binomial(prediction):
    axes = bll.plots.pit_histogram(prediction, Y, num_bins=5).axes[0]
    heights = [bar.get_height() for bar in axes.patches[:5]]
    values = prediction.pit(Y).numpy()
    np.testing.assert_allclose(heights, np.histogram(values, 5, (0, 1))[0] / 10)
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 50, 0.2) / 10
    band = axes.patches[5]
    assert band.get_y() == pytest.approx(low) and band.get_height() == pytest.approx(high - low)


def test_counts_and_ordered_classes_have_a_histogram():
    labels = torch.bucketize(Y, torch.tensor([-0.5, 0.5]))
    for likelihood, targets in ((bll.likelihoods.Poisson(), labels), (bll.likelihoods.Ordinal(3), labels)):
        fit = bll.fit(bll.LastLayer(likelihood), (FEATURES, targets), inference=bll.Laplace())
        axes = bll.plots.pit_histogram(fit.predict(FEATURES), targets).axes[0]
        assert np.mean([bar.get_height() for bar in axes.patches[:10]]) == pytest.approx(1)


def test_wrong_inputs(prediction):
    with pytest.raises(ValueError, match="one input for each of 50 rows"):
        bll.plots.fan_chart(prediction, X[:3])
