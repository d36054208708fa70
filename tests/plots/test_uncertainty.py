"""Pictures of predictions draw their numbers."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import bll_pyro as bll


@pytest.fixture(scope="module")
def fit():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 3, generator=random)
    targets = (inputs + torch.randn(80, 3, generator=random)).argmax(1)
    data = (inputs, targets)
    return bll.fit(bll.LastLayer(bll.likelihoods.Categorical(3)), data, inference=bll.Laplace()), data


def test_a_point_for_each_row(fit):
    near, far = fit[0].predict(fit[1][0][:50]), fit[0].predict(5 * fit[1][0][50:])
    figure = bll.plots.decomposition({"near": near, "far": far})
    axes = figure.axes[0]
    for points, prediction in zip(axes.collections, (near, far), strict=True):
        expected = torch.stack([prediction.aleatoric, prediction.epistemic], 1).numpy()
        np.testing.assert_allclose(points.get_offsets(), expected, rtol=1e-5)
    for line in axes.lines:  # along each the total is the same
        total = line.get_xdata() + line.get_ydata()
        assert np.allclose(total, total[0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["near", "far"]
    assert axes.get_xlabel() == "aleatoric, nats"
    assert all(
        limit[1] > part.max()
        for limit, part in ((axes.get_xlim(), near.aleatoric), (axes.get_ylim(), near.epistemic))
    )


def test_variances_of_real_values():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 2, generator=random)
    targets = inputs @ torch.tensor([[1.0, 0.5], [2.0, -1.0]]) + torch.randn(40, 2, generator=random)
    prediction = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (inputs, targets), inference=bll.Exact()
    ).predict(inputs)
    axes = bll.plots.decomposition(prediction).axes[0]
    np.testing.assert_allclose(
        axes.collections[0].get_offsets()[:, 1], prediction.epistemic.sum(1), rtol=1e-5
    )
    assert axes.get_xlabel() == "aleatoric, variance" and axes.get_legend() is None


def test_ridges_are_densities_of_the_draws(fit):
    tree = fit[0].to_datatree(*fit[1], num_draws=2000, class_probs=True, class_names=["a", "b", "c"])
    figure = bll.plots.class_probs(tree, 7)
    axes = figure.axes[0]
    draws = tree["class_probs"]["y"].sel(obs=7).values[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx(draws.mean(0).tolist(), rel=1e-5)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["c", "b", "a"]
    ridges = [line for line in axes.lines if len(line.get_xdata()) > 2]
    for place, ridge in enumerate(ridges):
        base = len(ridges) - 1 - place
        height = ridge.get_ydata() - base
        grid = ridge.get_xdata()
        cumulative = np.cumsum(height) / height.sum()
        below = stats.ecdf(draws[:, place]).cdf.evaluate(grid)
        assert (
            np.abs(cumulative - below).mean() < 0.015
        )  # Wasserstein distance: a kernel moves mass by its width


def test_bad_input(fit):
    plain = fit[0].to_datatree(*fit[1], num_draws=10)
    with pytest.raises(ValueError, match="class_probs=True"):
        bll.plots.class_probs(plain)
    with pytest.raises(ValueError, match="class_probs=True"):
        bll.plots.class_probs(xr.DataTree())
    with_probs = fit[0].to_datatree(*fit[1], num_draws=10, class_probs=True)
    with pytest.raises(ValueError, match="0 to 79"):
        bll.plots.class_probs(with_probs, 80)
    with pytest.raises(ValueError, match="at least one"):
        bll.plots.decomposition({})


@pytest.mark.parametrize("kind", ["values", "counts"])
def test_coverage_of_intervals(kind):
    """The points are the shares of targets between two quantiles."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator)
    targets = x[:, 0] + 0.5 * torch.randn(200, generator=generator)
    likelihood = bll.likelihoods.Gaussian()
    if kind == "counts":
        targets, likelihood = torch.poisson(targets.exp(), generator=generator), bll.likelihoods.Poisson()
    fit = bll.fit(bll.LastLayer(likelihood), (x[:60], targets[:60]))
    prediction = fit.predict(x[60:])
    (axes,) = bll.plots.coverage_of_intervals(prediction, targets[60:]).axes
    line = axes.lines[-1]
    for prob, share in list(zip(line.get_xdata(), line.get_ydata(), strict=True))[3::5]:
        lower, upper = prediction.interval(float(prob))
        inside = (lower <= targets[60:]) & (targets[60:] <= upper)
        assert share == pytest.approx(float(inside.double().mean()), abs=0.008)  # one target, by rounding
    points = bll.plots.residuals(prediction, targets[60:]).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], prediction.mean)
    np.testing.assert_allclose(points[:, 1], (targets[60:] - prediction.mean) / prediction.scale, rtol=1e-4)
