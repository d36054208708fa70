"""``bll.compare``: ranks as ArviZ does, refuses what cannot be subtracted, and stacks."""

import math
from dataclasses import replace

import arviz as az
import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.posterior import DrawsPosterior

L, G, P = bll.likelihoods, bll.guides, bll.priors
NUM_ROWS = 60


def rows(kind, num_rows=NUM_ROWS, seed=0):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 4, generator=random, dtype=torch.float64)
    f = inputs @ torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.3, -1.0], [0.0, 0.0]], dtype=torch.float64)
    noise = torch.randn(f.shape, generator=random, dtype=torch.float64)
    match kind:
        case "number":
            return inputs, 10 + 4 * f[:, 0] + 3 * noise[:, 0]
        case "numbers":
            return inputs, 10 + 4 * f + 3 * noise
        case "class":
            return inputs, (
                torch.cat([f, 0 * f[:, :1]], 1) + torch.randn(num_rows, 3, generator=random)
            ).argmax(-1)
        case "count":
            return inputs, torch.poisson((0.5 * f[:, 0] + 1).exp(), generator=random)
        case "labels":
            return inputs, (f + noise > 0).long()
    raise AssertionError(kind)


LIKELIHOODS = {
    "number": L.Gaussian(),
    "numbers": L.Gaussian(),
    "class": L.Categorical(3),
    "count": L.Poisson(),
    "labels": L.Bernoulli(),
}


def fitted(kind, scale, inference=None, data=None):
    layer = bll.LastLayer(LIKELIHOODS[kind], prior=P.Normal(scale))
    return bll.fit(
        layer, rows(kind) if data is None else data, inference=inference or bll.SVI(num_epochs=300)
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=[] if i % 4 == 0 else pytest.mark.slow) for i, kind in enumerate(LIKELIHOODS)
    ],
)
def compared(request):
    kind = request.param
    fits = {"tight": fitted(kind, 0.1), "wide": fitted(kind, 1.0)}
    return kind, fits, bll.compare(fits, rows(kind), new_data=rows(kind, 500, seed=1))


@pytest.mark.thinned(3)
def test_the_table_is_that_of_arviz_on_leave_one_out(compared):
    kind, fits, result = compared
    expected = az.compare({name: bll.loo(fit, rows(kind)) for name, fit in fits.items()}, round_to="none")
    assert list(result.table.index) == list(expected.index) == ["wide", "tight"]
    for column in ("elpd", "elpd_diff", "dse", "weight", "p"):
        np.testing.assert_allclose(result.table[column].astype(float), expected[column].astype(float))
    assert result.best == "wide" and sum(result.weights.values()) == pytest.approx(1.0)
    difference = result.loos["wide"].elpd_i - result.loos["tight"].elpd_i
    assert -float(result.table.loc["tight", "elpd_diff"]) == pytest.approx(float(difference.sum()))
    assert float(result.table.loc["tight", "dse"]) == pytest.approx(
        math.sqrt(NUM_ROWS * float(difference.var()))
    )


def test_held_out_rows_time_and_flags(compared):
    kind, fits, result = compared
    inputs, targets = rows(kind, 500, seed=1)
    for name, fit in fits.items():
        prediction = fit.predict(inputs)
        line = result.table.loc[name]
        log_prob = prediction.log_prob(targets)
        assert line["new_nll"] == pytest.approx(-float(log_prob.mean()))
        assert line["new_nll_se"] == pytest.approx(float(log_prob.std()) / math.sqrt(500))
        assert line["seconds"] == fit.trace.wall_time > 0
        assert line["flagged"] == len(result.loos[name].flagged)
        if kind == "class":
            assert line["new_ece"] == pytest.approx(bll.metrics.ece(prediction.probs, targets))
        elif kind == "labels":
            each = [bll.metrics.ece(prediction.probs[:, t], targets[:, t]) for t in range(2)]
            assert line["new_ece"] == pytest.approx(np.mean(each))
        else:
            assert line["new_rmse"] > 0 and 0.5 < line["new_coverage"] <= 1


def test_it_prints_the_columns_that_it_has(compared):
    text = str(compared[2])
    assert "elpd" in text and "weight" in text and "stack" in text
    assert "<table" in compared[2]._repr_html_()
    assert compared[2].to_pandas().equals(compared[2].table)


def test_a_stack_is_the_mixture_of_its_fits(compared):
    kind, fits, _ = compared
    stack = bll.Stack(fits, {"tight": 0.3, "wide": 0.7})
    inputs, targets = rows(kind, 100, seed=2)
    tight, wide, mixed = (one.predict(inputs) for one in (fits["tight"], fits["wide"], stack))
    expected = (0.3 * tight.log_prob(targets).exp() + 0.7 * wide.log_prob(targets).exp()).log()
    torch.testing.assert_close(mixed.log_prob(targets), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed.total, mixed.aleatoric + mixed.epistemic)
    assert bool((mixed.epistemic >= 0).all())
    assert len(mixed.to_pandas()) == 100
    if hasattr(mixed, "probs"):
        torch.testing.assert_close(mixed.probs, 0.3 * tight.probs + 0.7 * wide.probs)
        assert bool((mixed.label == mixed.label.round()).all()) and bool((mixed.confidence >= 1 / 3).all())
    else:
        torch.testing.assert_close(mixed.mean, 0.3 * tight.mean + 0.7 * wide.mean)
        second = 0.3 * (tight.total + tight.mean**2) + 0.7 * (wide.total + wide.mean**2)
        torch.testing.assert_close(mixed.total, second - mixed.mean**2)


def test_quantiles_and_draws_of_a_stack_of_numbers(compared):
    kind, fits, _ = compared
    if kind not in ("number", "numbers", "count"):
        return
    mixed = bll.Stack(fits, {"tight": 0.4, "wide": 0.6}).predict(rows(kind, 20, seed=2)[0])
    lower, upper = mixed.interval(0.8)
    if kind == "count":
        for q, value in ((0.1, lower), (0.9, upper)):
            assert bool((mixed.cdf(value) >= q - 1e-6).all()) and bool((mixed.cdf(value - 1) < q).all())
    else:
        torch.testing.assert_close(mixed.cdf(lower), torch.full_like(lower, 0.1), atol=1e-4, rtol=0)
        torch.testing.assert_close(mixed.cdf(upper), torch.full_like(upper, 0.9), atol=1e-4, rtol=0)
    draws = mixed.sample(4000, seed=1)
    assert draws.shape == (4000, *mixed.mean.shape)
    error = (draws.double().mean(0) - mixed.mean) / (mixed.scale / math.sqrt(4000))
    assert float(error.abs().max()) < 5
    inside = ((draws >= lower) & (draws <= upper)).double().mean()
    assert float(inside) >= 0.78


def test_stacking_weights_make_the_best_mixture_of_the_left_out_densities(compared):
    """No other weights give a higher leave-one-out density of the mixture."""
    _, _, result = compared
    densities = np.stack([np.exp(result.loos[name].elpd_i.values) for name in result.weights])
    own = np.log(np.array(list(result.weights.values())) @ densities).sum()
    for share in np.linspace(0, 1, 21):
        assert np.log(np.array([share, 1 - share]) @ densities).sum() <= own + 1e-3


def test_draws_are_compared_with_gaussians():
    """A posterior of draws goes through PSIS, and the same posterior in output space gives the same."""
    exact = fitted("number", 1.0, bll.Exact())
    names = ("layer", "frame", "target_shape", "num_outputs", "learned")
    common = {name: getattr(exact.posterior, name) for name in names}
    sampled = replace(
        exact, posterior=DrawsPosterior(**common, draws=exact.posterior.sample(4000), markov_chain=False)
    )
    table = bll.compare({"exact": exact, "draws": sampled}, rows("number")).table
    assert float(table["elpd"].diff().abs().max()) < 0.5


def test_some_rows_are_the_same_for_all():
    fits = {"tight": fitted("class", 0.1), "wide": fitted("class", 1.0)}
    result = bll.compare(fits, rows("class"), num_rows=30, seed=3)
    chosen = [loo.loo_subsample_observations for loo in result.loos.values()]
    assert np.array_equal(*chosen) and len(chosen[0]) == 30 and result.best == "wide"


def test_other_features_of_the_same_rows():
    inputs, labels = rows("class")
    fits = {
        "all": fitted("class", 1.0),
        "two": fitted("class", 1.0, data=(inputs[:, :2], labels)),
    }
    result = bll.compare(fits, {"all": (inputs, labels), "two": (inputs[:, :2], labels)})
    assert set(result.table.index) == {"all", "two"}
    with pytest.raises(ValueError, match="same targets in the same order"):
        bll.compare(fits, {"all": (inputs, labels), "two": (inputs[:, :2], labels.flip(0))})
    with pytest.raises(ValueError, match="use the same names"):
        bll.compare(fits, {"all": (inputs, labels)})


def test_other_rows_are_refused():
    inputs, targets = rows("number")
    fit = fitted("number", 1.0)
    fewer = fitted("number", 1.0, data=(inputs[:50], targets[:50]))
    with pytest.raises(ValueError, match="fits of the same rows"):
        bll.compare({"a": fit, "b": fewer}, (inputs, targets))
    elsewhere = fitted("number", 1.0, data=rows("number", seed=7))
    with pytest.raises(ValueError, match="'b' was fitted on, got rows whose features"):
        bll.compare({"a": fit, "b": elsewhere}, (inputs, targets))
    with pytest.raises(ValueError, match="60 rows that 'a' was fitted on, got 50"):
        bll.compare({"a": fit, "b": fit}, (inputs[:50], targets[:50]))


def test_densities_and_probabilities_are_not_subtracted():
    inputs, counts = rows("count")
    as_number = fitted("number", 1.0, data=(inputs, counts))
    with pytest.raises(ValueError, match="densities of one kind"):
        bll.compare({"count": fitted("count", 1.0), "number": as_number}, (inputs, counts))


@pytest.mark.unchecked
def test_what_is_not_several_fits_is_refused():
    fit = fitted("number", 1.0)
    with pytest.raises(ValueError, match="at least two"):
        bll.compare({"one": fit}, rows("number"))
    with pytest.raises(TypeError, match="fits by name"):
        bll.compare([fit, fit], rows("number"))


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}])
def test_weights_that_are_none_are_refused(weights):
    fit = fitted("class", 1.0, bll.SVI(num_epochs=1))
    with pytest.raises(ValueError, match="Stack"):
        bll.Stack({"a": fit, "b": fit}, weights)
