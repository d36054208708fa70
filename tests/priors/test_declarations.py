"""Priors as declarations: comparison, and what is said about bad input."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from prior_cases import LOC, PRIORS, D, K

import bll_pyro as bll
from bll_pyro import priors
from bll_pyro.scope import generator


def test_all_priors_of_the_table_differ() -> None:
    assert len(set(PRIORS.values())) == len(PRIORS)
    assert priors.Normal(loc=LOC) != priors.Normal(loc=LOC + 1)
    assert priors.HierarchicalNormal(dist.HalfCauchy(1.0)) != priors.HierarchicalNormal(dist.HalfCauchy(2.0))


P = priors
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: P.StudentT(df=2.0), ValueError, r"df=.*above 2.*got 2\.0.*Horseshoe\(\)"),
    (lambda: P.StudentT(scale=-1.0), ValueError, r"StudentT\(scale=.*positive number, got -1"),
    (lambda: P.Laplace(scale=0.0), ValueError, r"Laplace\(scale=.*positive number, got 0"),
    (lambda: P.Laplace(loc=[[0.0]]), TypeError, r"Laplace\(loc=.*floating-point tensor.*got list"),
    (lambda: P.Normal(loc=torch.ones(2, 3, dtype=torch.int64)), TypeError, r"Normal\(loc=.*got torch\.int64"),
    (lambda: P.StudentT(loc=LOC * float("nan")), ValueError, r"StudentT\(loc=.*NaN"),
    (lambda: P.Horseshoe(slab_df=0), ValueError, r"slab_df=.*positive number, got 0"),
    (lambda: P.Horseshoe(num_relevant="5"), ValueError, r"num_relevant=.*positive number, got '5'"),
    (lambda: P.Horseshoe(num_relevant=5, global_scale=1.0), ValueError, "got both; drop one"),
    (
        lambda: P.HierarchicalNormal(1.0),
        TypeError,
        r"hyper_prior=.*Pyro distribution.*got 1\.0.*Normal\(scale",
    ),
    (lambda: P.HierarchicalNormal(dist.Normal(0.0, 1.0)), ValueError, "positive numbers, got Normal"),
    (lambda: P.HierarchicalNormal(dist.Poisson(1.0)), ValueError, "positive numbers, got Poisson"),
    (
        lambda: P.HierarchicalNormal(dist.HalfNormal(torch.ones(3))),
        ValueError,
        r"one number, got one of shape \[3\]",
    ),
    (lambda: P.HierarchicalNormal(torch.distributions.HalfNormal(1.0)), TypeError, "Pyro distribution"),
    (lambda: P.HierarchicalNormal(per_feature="yes"), TypeError, "True or False, got 'yes'"),
    (lambda: P.SpikeAndSlab(slab_prob=1.5), ValueError, r"slab_prob=.*between 0 and 1.*got 1\.5"),
    (lambda: P.SpikeAndSlab(slab_prob=dist.HalfNormal(1.0)), ValueError, "between 0 and 1, got HalfNormal"),
    (lambda: P.SpikeAndSlab(slab_scale=-1.0), ValueError, r"slab_scale=.*positive number.*got -1"),
    (lambda: P.SpikeAndSlab(spike_scale=2.0, slab_scale=1.0), ValueError, "spike_scale < slab_scale"),
    (lambda: P.Distribution(1.0), TypeError, r"Pyro distribution.*got 1\.0"),
    (lambda: P.Distribution(dist.HalfNormal(1.0)), ValueError, "over all real numbers.*got HalfNormal"),
    (lambda: P.Distribution(dist.Bernoulli(0.5)), ValueError, "over all real numbers.*got Bernoulli"),
    (
        lambda: P.Distribution(dist.Normal(torch.zeros(1, 2, 3), 1.0)),
        ValueError,
        r"two dimensions.*\[1, 2, 3\]",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_declarations(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            P.Normal(loc=torch.zeros(K, D + 1)),
            r"Normal\(loc=.*broadcasts to the weight's \[2, 3\].*got \[2, 4\]",
        ),
        (P.StudentT(loc=torch.zeros(K, 1, D)), r"got \[2, 1, 3\]"),
        (P.Horseshoe(num_relevant=3), r"num_relevant=.*fewer than the 3 features, got 3"),
        (P.Distribution(dist.Normal(torch.zeros(4), 1.0)), r"broadcasts to the weight's \[2, 3\].*got \[4\]"),
        (
            P.Distribution(dist.MultivariateNormal(torch.zeros(1), torch.eye(1))),
            r"event shape \[3\], got \[1\]",
        ),
    ],
)
def test_wrong_shapes_are_found_with_the_data(prior: priors.Prior, message: str) -> None:
    layer = bll.LastLayer(bll.likelihoods.Categorical(K), prior=prior)
    with pytest.raises(ValueError, match=message):
        bll.fit(layer, (torch.randn(10, D, generator=torch.Generator().manual_seed(0)), torch.arange(10) % K))


def test_dependent_weights_have_no_distribution_of_their_own() -> None:
    with pytest.raises(TypeError, match=r"draws all weights together, such as bll\.SVI"):
        PRIORS["any, dependent"].distribution((K, D))


@pytest.mark.parametrize("prior", [bll.priors.Normal, bll.priors.Laplace, bll.priors.StudentT])
def test_a_whole_number_is_a_scale_too(prior: type[bll.priors.Prior]) -> None:
    """Draws of the prior are real numbers, whichever way its scale was written."""
    features = torch.randn(5, 3, generator=generator(0))
    trees = [
        bll.prior_predictive(
            bll.LastLayer(bll.likelihoods.Categorical(2), prior=prior(scale=scale)), features
        )
        for scale in (2, 2.0)
    ]
    xr.testing.assert_identical(*(tree["prior_predictive"].to_dataset() for tree in trees))
