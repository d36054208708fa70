"""The picture of a prior draws its outputs and entropies."""

import numpy as np
import pytest
import torch
import xarray as xr

import bll_pyro as bll


def features():
    return torch.rand(30, 100, generator=torch.Generator().manual_seed(0))


def heights(axes, color_index=0):
    return np.array([patch.get_height() for patch in axes.containers[color_index].patches])


def test_one_column_for_each_prior():
    trees = {
        name: bll.prior_predictive(
            bll.LastLayer(bll.likelihoods.Categorical(4), bll.priors.Normal(scale)), features(), num_draws=50
        )
        for name, scale in (("wide", 3.0), ("narrow", 0.01))
    }
    figure = bll.plots.prior_predictive(trees)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["wide", "narrow"]
    for (top, bottom), tree in zip(np.reshape(figure.axes, (2, 2)).T, trees.values(), strict=True):
        outputs = tree["prior_predictive"]["f"].values
        assert top.texts[0].get_text() == f"sd {outputs.std():.3g}"
        assert heights(top).sum() == pytest.approx(0.998, abs=0.002)
        entropy = tree["prior_predictive"]["entropy"].values.ravel()
        edges = [patch.get_x() for patch in bottom.containers[0].patches]
        expected = np.histogram(entropy, [*edges, np.log(4) * 1.0001])[0] / len(entropy)
        np.testing.assert_allclose(heights(bottom), expected, atol=1e-12)
        assert bottom.lines[0].get_xdata()[0] == pytest.approx(np.log(4))


def test_targets_beside_those_observed():
    targets = torch.linspace(10.0, 20.0, 30)
    tree = bll.prior_predictive(bll.LastLayer(bll.likelihoods.Gaussian()), features(), targets, num_draws=50)
    bottom = bll.plots.prior_predictive(tree).axes[1]
    assert [text.get_text() for text in bottom.get_legend().get_texts()] == ["prior", "observed"]
    assert heights(bottom, 1).sum() == pytest.approx(1)
    first, last = bottom.containers[1].patches[0], bottom.containers[1].patches[-1]
    assert first.get_x() <= 10 and last.get_x() + last.get_width() >= 20


def test_bad_input():
    with pytest.raises(ValueError, match=r"bll\.prior_predictive"):
        bll.plots.prior_predictive(xr.DataTree())
