"""The picture of the ELBO shows the ELBO."""

import numpy as np
import pytest
import torch

import bll_pyro as bll


@pytest.fixture(scope="module")
def fit():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=random)
    return bll.fit(
        bll.LastLayer(bll.likelihoods.Bernoulli()),
        (inputs, (inputs[:, 0] > 0).long()),
        inference=bll.SVI(num_epochs=100),
    )


def test_lines_are_the_elbo(fit):
    figure = bll.plots.elbo_trace(fit, window=7)
    each, mean, final = figure.axes[0].lines
    elbo = fit.trace.elbo.double().numpy() / 60
    np.testing.assert_allclose(each.get_ydata(), elbo)
    np.testing.assert_allclose(mean.get_ydata(), np.lib.stride_tricks.sliding_window_view(elbo, 7).mean(-1))
    assert mean.get_xdata()[0] == 7 and mean.get_xdata()[-1] == len(elbo)
    assert final.get_ydata()[0] == pytest.approx(fit.elbo / 60)


def test_draws_where_it_is_told(fit):
    from matplotlib.figure import Figure

    own = Figure()
    axes = own.subplots()
    assert bll.plots.elbo_trace(fit, axes=axes) is own
    assert len(axes.lines) == 3
    with pytest.raises(ValueError, match="got both"):
        bll.plots.elbo_trace(fit, axes=axes, size=(3, 3))


def test_a_notebook_shows_it_and_pyplot_does_not_keep_it(fit):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert bll.plots.elbo_trace(fit)._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == before


def test_bad_input(fit):
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 2, generator=random)
    exact = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()),
        (inputs, torch.randn(20, generator=random)),
        inference=bll.Exact(),
    )
    with pytest.raises(ValueError, match=r"expected a fit by SVI.*got Exact"):
        bll.plots.elbo_trace(exact)
    with pytest.raises(ValueError, match="window"):
        bll.plots.elbo_trace(fit, window=0)


def test_names_are_listed():
    assert set(bll.plots.__all__) == set(dir(bll.plots))
    for name in bll.plots.__all__:
        assert callable(getattr(bll.plots, name))
