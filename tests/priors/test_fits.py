"""What a fit does with hyper-parameters, centres and dependent weights."""

import math

import pyro.distributions as dist
import pytest
import torch
from prior_cases import COVARIANCE, LOC, PRIORS, D, K
from torch import Tensor

import bll_pyro as bll
from bll_pyro import priors
from bll_pyro.scope import isolated

NUM_ROWS = 40
LIKELIHOODS: dict[str, bll.likelihoods.Likelihood] = {
    "classes": bll.likelihoods.Categorical(K),
    "numbers": bll.likelihoods.Gaussian(),
}


def data(likelihood: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(NUM_ROWS, D, generator=random, dtype=dtype)
    outputs = features @ LOC.to(dtype).mT + 0.3 * torch.randn(NUM_ROWS, K, generator=random, dtype=dtype)
    return features, outputs if likelihood == "numbers" else outputs.argmax(-1)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.thinned(4)
def test_double_precision(name: str) -> None:
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), prior=PRIORS[name])
    fit = bll.fit(layer, data("numbers", torch.float64), inference=bll.SVI(num_epochs=5))
    draws = fit.posterior.sample(3)
    assert all(value.dtype == torch.float64 for value in draws.values())


@pytest.mark.parametrize("name", ["hierarchical", "horseshoe", "spike and slab", "hierarchical, per output"])
def test_mode_keeps_hyper_parameters_at_their_medians(name: str) -> None:
    """The joint mode of weights and their scale lies where both vanish; it is no estimate of anything."""
    prior = PRIORS[name]
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.3), prior=prior)
    draws = bll.fit(
        layer, data("numbers"), inference=bll.SVI(guide=bll.guides.MAP(), num_epochs=30)
    ).posterior.sample(1)
    for site, given in prior.hyper((K, D)).items():
        with isolated(1):
            medians = given.sample((20_000,)).median(0).values
        torch.testing.assert_close(draws[site][0, 0], medians, rtol=0.06, atol=0)
    assert float(draws["weight"].abs().max()) > 0.1


def test_mode_given_the_median_is_ridge_regression() -> None:
    features, targets = data("numbers")
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(0.5), prior=priors.HierarchicalNormal(dist.LogNormal(math.log(0.2), 1.0)),
        bias=False, standardize=False,
    )  # fmt: skip
    fit = bll.fit(layer, (features, targets), inference=bll.SVI(guide=bll.guides.MAP()))
    ridge = torch.linalg.solve(
        features.mT @ features / 0.25 + torch.eye(D) / 0.04, features.mT @ targets / 0.25
    ).mT
    torch.testing.assert_close(fit.posterior.sample(1)["weight"][0, 0], ridge, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "prior",
    [
        priors.Normal(1e-3, loc=LOC),
        priors.Laplace(1e-3, loc=LOC),
        priors.StudentT(4.0, 1e-3, loc=LOC),
        priors.HierarchicalNormal(dist.LogNormal(-7.0, 0.1), loc=LOC),
        priors.SpikeAndSlab(1e-3, 2e-3, loc=LOC),
        priors.Distribution(dist.Normal(LOC, 1e-3)),
    ],
    ids=lambda prior: type(prior).__name__,
)
@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
@pytest.mark.thinned(3)
def test_tight_priors_stay_at_their_centre(prior: priors.Prior) -> None:
    features, targets = data("classes")
    layer = bll.LastLayer(bll.likelihoods.Categorical(K), prior=prior, bias=False, standardize=False)
    fit = bll.fit(layer, (features, targets), inference=bll.SVI(num_epochs=200))
    torch.testing.assert_close(fit.posterior.sample(50)["weight"][0].mean(0), LOC, rtol=0, atol=0.02)


def test_only_priors_that_turn_are_fitted_in_principal_axes() -> None:
    turning = {
        name
        for name, prior in PRIORS.items()
        if bll.SVI().rotates(bll.LastLayer(LIKELIHOODS["classes"], prior))
    }
    assert turning == {
        "normal", "normal, given", "normal, per output", "hierarchical", "hierarchical, per output",
    }  # fmt: skip


@pytest.mark.slow
def test_dependent_weights_against_the_evidence() -> None:
    """On Pyro's general path: a bound of the log evidence, which is that of a Gaussian process, and near it."""
    features, targets = data("numbers")
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(0.5), prior=PRIORS["any, dependent"], bias=False, standardize=False
    )
    svi = bll.SVI(guide=bll.guides.FullRank(), num_epochs=1500)
    fit = bll.fit(layer, (features, targets), inference=svi)
    kernel = features @ COVARIANCE @ features.mT + 0.25 * torch.eye(NUM_ROWS)
    given = dist.MultivariateNormal(torch.zeros(NUM_ROWS).double(), kernel.double())
    evidence = float(given.log_prob(targets.mT.double()).sum())
    assert fit.elbo == pytest.approx(evidence, abs=1.0)
