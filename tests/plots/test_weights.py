"""Pictures of weights draw the numbers of the tree."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import bll_pyro as bll

CLASSES, FEATURES = ["ash", "birch"], ["height", "girth", "age", "light"]


@pytest.fixture(scope="module")
def tree():
    random = np.random.default_rng(0)
    mean = np.array([[0.1, -3.0, 0.2, 1.0], [2.0, 0.0, -0.5, 0.1]])
    draws = mean + random.normal(0, 0.5, (1, 500, 2, 4))
    draws[..., 1, 0] = 2.0 - (draws[..., 0, 1] + 3.0)  # correlation -1
    dims = ("chain", "draw", "output", "feature")
    weight = xr.DataArray(draws, dims=dims, coords={"output": CLASSES, "feature": FEATURES})
    return xr.DataTree.from_dict({"posterior": xr.Dataset({"weight": weight})})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_forest_shows_the_strongest_of_each_class(tree):
    plot = bll.plots.weights_forest(tree, num_features=2, ci_probs=(0.5, 0.9))
    names, axes = plot.viz["figure"].item().axes
    shown = [text.get_text() for text in names.texts if text.get_text() != "weight"]
    assert shown == ["ash, girth", "ash, light", "birch, height", "birch, age"]
    points = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets())])
    weight = tree["posterior"]["weight"]
    expected = [float(weight.sel(output=o, feature=f).mean()) for o, f in (t.split(", ") for t in shown)]
    np.testing.assert_allclose(sorted(points[:, 0]), sorted(expected), rtol=1e-6)
    lines = [np.sort(line.get_xdata()) for line in axes.lines if np.ptp(line.get_xdata()) > 0]
    low, high = np.quantile(weight.sel(output="ash", feature="girth").values, [0.05, 0.95])
    assert any(np.allclose(line[[0, -1]], [low, high], rtol=1e-6) for line in lines)


def test_correlations_are_those_of_the_draws(tree):
    figure = bll.plots.weights_correlation(tree, num_features=2)
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    weight = tree["posterior"]["weight"]
    order = [("ash", "girth"), ("ash", "light"), ("birch", "height"), ("birch", "age")]
    columns = [weight.sel(output=o, feature=f).values.ravel() for o, f in order]
    np.testing.assert_allclose(shown, np.corrcoef(columns), atol=1e-12)
    assert shown[0, 2] == pytest.approx(-1)
    assert [t.get_text() for t in axes.get_yticklabels()] == [", ".join(pair) for pair in order]
    assert axes.images[0].get_clim() == (-1, 1)


def test_chosen_outputs(tree):
    figure = bll.plots.weights_correlation(tree, outputs=["birch"], num_features=4)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (4, 4)


@pytest.mark.parametrize("plot", [bll.plots.weights_forest, bll.plots.weights_correlation])
def test_bad_input(tree, plot):
    with pytest.raises(ValueError, match=r"expected some of \['ash', 'birch'\]"):
        plot(tree, outputs=["oak"])
    with pytest.raises(ValueError, match="num_features"):
        plot(tree, num_features=0)
    with pytest.raises(ValueError, match="posterior/weight"):
        plot(xr.DataTree())
