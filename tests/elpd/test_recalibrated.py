"""Leave-one-out of a recalibrated fit: the recalibrated prediction by the fit without the row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.posterior import DrawsPosterior
from bll_pyro.prediction import NoiseFactor, PredictiveTemperature

NUM_ROWS = 40
pytestmark = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(NUM_ROWS, 3, generator=GENERATOR, dtype=torch.float64)
F = X @ torch.tensor([[1.0, -0.5], [0.3, 1.0], [-1.0, 0.2]], dtype=torch.float64)
VALUES = F[:, 0] + 0.5 * torch.randn(NUM_ROWS, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.cat([torch.zeros(NUM_ROWS, 1), F + torch.randn(NUM_ROWS, 2, generator=GENERATOR)], 1).argmax(
    -1
)
L = bll.likelihoods
CASES = {
    "classes": (L.Categorical(3), LABELS, PredictiveTemperature(0.6)),
    "ordered": (L.Ordinal(3), LABELS, PredictiveTemperature(0.6)),
    "label": (L.Bernoulli(), (LABELS > 0).long(), PredictiveTemperature(0.6)),
    "two labels": (
        L.Bernoulli(),
        torch.stack([LABELS > 0, LABELS > 1], -1).long(),
        PredictiveTemperature(1.5),
    ),
    "StudentT": (L.StudentT(), VALUES, NoiseFactor(1.5)),
}


def declared(likelihood):
    return bll.LastLayer(likelihood, prior=bll.priors.Normal(1.0), standardize=False)


@pytest.mark.parametrize("noise", [0.5, None], ids=["known", "unknown"])
@pytest.mark.parametrize("factor", [0.7, 2.0])
def test_exact_inference_agrees_with_refits(noise, factor):
    """Every row left out by a fit of its own, whose prediction is recalibrated."""
    fit = bll.fit(declared(L.Gaussian(noise)), (X, VALUES), inference=bll.Exact())
    found = bll.loo(replace(fit, recalibration=NoiseFactor(factor)), (X, VALUES))
    refits = []
    for row in range(NUM_ROWS):
        rest = torch.arange(NUM_ROWS) != row
        without = bll.fit(declared(L.Gaussian(noise)), (X[rest], VALUES[rest]), inference=bll.Exact())
        without = replace(without, recalibration=NoiseFactor(factor))
        refits.append(float(without.predict(X[row : row + 1]).log_prob(VALUES[row : row + 1])))
    np.testing.assert_allclose(found.elpd_i, refits, atol=2e-3)
    whole = replace(fit, recalibration=NoiseFactor(factor)).predict(X).log_prob(VALUES)
    assert found.p == pytest.approx(float(whole.sum()) - found.elpd, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_classes_agree_with_refits(temperature):
    """Within 2 %, as without a temperature; the densities before the recalibration are further off."""
    inference = bll.Laplace(curvature=bll.curvatures.Full())
    fit = bll.fit(declared(L.Categorical(3)), (X, LABELS), inference=inference)
    found = bll.loo(replace(fit, recalibration=PredictiveTemperature(temperature)), (X, LABELS))
    refits = []
    for row in range(NUM_ROWS):
        rest = torch.arange(NUM_ROWS) != row
        without = bll.fit(declared(L.Categorical(3)), (X[rest], LABELS[rest]), inference=inference)
        log_probs = without.predict(X[row : row + 1]).probs.log() / temperature
        refits.append(float(log_probs.log_softmax(-1)[0, LABELS[row]]))
    assert found.elpd == pytest.approx(sum(refits), rel=0.02)
    assert bll.loo(fit, (X, LABELS)).elpd != pytest.approx(sum(refits), rel=0.02)


def as_draws(fit, num_draws):
    """The same posterior as draws."""
    names = ("layer", "frame", "target_shape", "num_outputs", "learned")
    common = {name: getattr(fit.posterior, name) for name in names}
    draws = fit.posterior.sample(num_draws, seed=1)
    return replace(fit, posterior=DrawsPosterior(**common, draws=draws, markov_chain=False))


@pytest.mark.parametrize("case", CASES)
def test_draws_and_output_space_agree(case):
    """PSIS takes the weights of the model and averages the recalibrated density; both estimates are of the same number."""
    likelihood, targets, recalibration = CASES[case]
    fit = bll.fit(declared(likelihood), (X, targets), inference=bll.Laplace(bll.curvatures.Full()))
    gains = []
    for one in (fit, as_draws(fit, 4000)):
        found = bll.loo(replace(one, recalibration=recalibration), (X, targets))
        gains.append(found.elpd_i - bll.loo(one, (X, targets)).elpd_i)
    assert float(abs(gains[0]).max()) > 0.3
    np.testing.assert_allclose(gains[1], gains[0], atol=0.06, rtol=0.15)


def test_some_rows_estimate_all():
    """The difference estimator, in output space and on draws."""
    fit = bll.fit(declared(L.Categorical(3)), (X, LABELS), inference=bll.SVI(num_epochs=200))
    fit = replace(fit, recalibration=PredictiveTemperature(0.7))
    for one in (fit, as_draws(fit, 2000)):
        whole = bll.loo(one, (X, LABELS))
        parts = [bll.loo(one, (X, LABELS), num_rows=25, seed=seed) for seed in range(8)]
        errors = [(part.elpd - whole.elpd) / part.subsampling_se for part in parts]
        assert np.abs(np.mean(errors)) < 4 / np.sqrt(8)
        chosen = parts[0].loo_subsample_observations
        np.testing.assert_allclose(parts[0].elpd_i[chosen], whole.elpd_i[chosen], atol=1e-4)


def test_compare_ranks_recalibrated_fits():
    """A temperature that is far off is found to be worse, by the density of the recalibrated prediction."""
    fit = bll.fit(declared(L.Categorical(3)), (X, LABELS), inference=bll.SVI(num_epochs=200))
    fits = {"as it is": fit, "far off": replace(fit, recalibration=PredictiveTemperature(0.05))}
    found = bll.compare(fits, (X, LABELS))
    assert found.best == "as it is"
    assert float(found.table.loc["far off", "elpd"]) < float(found.table.loc["as it is", "elpd"]) - 10
