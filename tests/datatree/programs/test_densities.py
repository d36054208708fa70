"""Log-densities of the tree against SciPy, to 1e-6."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from datatree.programs.pyro_models import (
    EFFECTS,
    ERRORS,
    F64,
    eight_schools,
    number,
    radon,
    radon_data,
)
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from scipy import special, stats

from bll_pyro.datatree import from_pyro
from bll_pyro.datatree.programs.densities import unconstrained

Draws = dict[str, NDArray[Any]]
QUIET: dict[str, Any] = {"prior": False, "posterior_predictive": False}


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6, atol=1e-6)


def schools_draws() -> Draws:
    rng = np.random.default_rng(0)
    return {
        "mu": rng.normal(size=(2, 7)),
        "tau": rng.gamma(2.0, size=(2, 7)),
        "eta": rng.normal(size=(2, 7, 8)),
    }


def check_sums(tree: xr.DataTree) -> None:
    """The joint log-density is the sum of the likelihood and the prior."""
    total = sum(
        part.sum([dim for dim in part.dims if dim not in ("chain", "draw")])
        for group in (tree.log_likelihood, tree.log_prior)
        for part in group.data_vars.values()
    )
    close(tree.sample_stats.log_p, total)


def test_eight_schools() -> None:
    draws = schools_draws()
    tree = from_pyro(eight_schools, draws, args=(ERRORS, EFFECTS), **QUIET)
    theta = draws["mu"][..., None] + draws["tau"][..., None] * draws["eta"]
    close(tree.posterior.theta, theta)
    close(tree.log_likelihood.y, stats.norm.logpdf(EFFECTS, theta, ERRORS))
    close(tree.log_prior.mu, stats.norm.logpdf(draws["mu"], 0, 5))
    close(tree.log_prior.tau, stats.halfcauchy.logpdf(draws["tau"], scale=5))
    close(tree.log_prior.eta, stats.norm.logpdf(draws["eta"]))
    check_sums(tree)


@pytest.mark.parametrize("vectorize", [True, False])
def test_subsampled_rows_are_all_there_and_not_scaled(vectorize: bool) -> None:
    county, floor, log_radon = radon_data()
    rng = np.random.default_rng(1)
    draws = {name: rng.gamma(3.0, 0.3, size=(1, 6)) for name in ("mu", "spread", "slope", "noise")}
    draws["level"] = rng.normal(size=(1, 6, 9))
    tree = from_pyro(radon, draws, args=(county, floor, log_radon), vectorize=vectorize, **QUIET)
    mean = draws["level"][..., county] + draws["slope"][..., None] * floor.numpy()
    close(tree.observed_data.log_radon, log_radon)
    close(tree.log_likelihood.log_radon, stats.norm.logpdf(log_radon, mean, draws["noise"][..., None]))
    close(
        tree.log_prior["level"],
        stats.norm.logpdf(draws["level"], draws["mu"][..., None], draws["spread"][..., None]),
    )
    close(tree.log_prior.spread, stats.expon.logpdf(draws["spread"]))
    check_sums(tree)


def test_energy_of_the_sampler() -> None:
    draws = schools_draws()
    _, potential, transforms, _ = initialize_model(eight_schools, (ERRORS, EFFECTS))
    joint = from_pyro(eight_schools, draws, args=(ERRORS, EFFECTS), **QUIET).sample_stats.log_p.values.ravel()
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}
    expected = [
        -potential({name: transforms[name](torch.tensor(value[s])) for name, value in flat.items()}).item()
        for s in range(14)
    ]
    close(unconstrained(joint, flat, transforms), expected)
    # by hand: the sampler moves log(tau), and d tau / d log(tau) = tau
    close(unconstrained(joint, flat, transforms), joint + np.log(flat["tau"]))


def mixture(data: Any) -> None:
    """Two Normals; each row has a component of its own, which is summed out."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2, dtype=F64)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(number(0.0), 3.0))
    pyro.deterministic("distance", loc[1] - loc[0])
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
        pyro.deterministic("own", loc[z], event_dim=0)
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=data)


def test_discrete_sites_are_summed_out_row_by_row() -> None:
    rng = np.random.default_rng(3)
    data = torch.tensor(rng.normal(size=12))
    draws = {"share": rng.dirichlet([1, 1], size=(1, 9)), "loc": rng.normal(size=(1, 9, 2))}
    tree = from_pyro(mixture, draws, args=(data,), posterior_predictive=True, prior=20)
    by_component = stats.norm.logpdf(data[:, None], draws["loc"][..., None, :])
    expected = special.logsumexp(np.log(draws["share"])[..., None, :] + by_component, axis=-1)
    close(tree.log_likelihood.y, expected)
    close(tree.log_prior.share, stats.dirichlet([1, 1]).logpdf(draws["share"][0].T)[None])
    assert set(tree.log_prior.data_vars) == {"share", "loc"}
    assert set(tree.posterior.data_vars) == {"share", "loc", "distance"}, "'own' needs the component"
    check_sums(tree)


def test_masked_rows_are_left_out() -> None:
    y = torch.tensor([[1.0, 2.0, np.nan], [np.nan, 5.0, 6.0]], dtype=F64)
    seen = ~y.isnan()

    def by_obs_mask() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("person", 2, dim=-2), pyro.plate("week", 3, dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    def by_mask() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("person", 2, dim=-2), pyro.plate("week", 3, dim=-1), poutine.mask(mask=seen):
            pyro.sample("y_observed", dist.Normal(mu, 1.0), obs=y.nan_to_num())

    def by_distribution() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("person", 2, dim=-2), pyro.plate("week", 3, dim=-1):
            pyro.sample("y_observed", dist.Normal(mu, 1.0).mask(seen), obs=y.nan_to_num())

    rng = np.random.default_rng(4)
    mu, filled = rng.normal(size=(1, 4)), rng.normal(size=(1, 4, 2, 3))
    expected = stats.norm.logpdf([1.0, 2.0, 5.0, 6.0], mu[..., None])
    for model in (by_obs_mask, by_mask, by_distribution):
        draws = {"mu": mu, "y_unobserved": filled} if model is by_obs_mask else {"mu": mu}
        tree = from_pyro(model, draws, coords={"week": ["w1", "w2", "w3"]}, prior=5)
        close(tree.log_likelihood.y_observed, expected)
        assert list(tree.observed_data.y_observed.values) == [1.0, 2.0, 5.0, 6.0]
        assert tree.posterior_predictive.y_observed.dims == ("chain", "draw", "y_observed_row")
        assert list(tree.observed_data.y_observed_week.values) == ["w1", "w2", "w2", "w3"]
        assert list(tree.observed_data.y_observed_person.values) == [0, 0, 1, 1]
        check_sums(tree)
    tree = from_pyro(by_obs_mask, {"mu": mu, "y_unobserved": filled}, **QUIET)
    assert set(tree.posterior.data_vars) == {"mu", "y_unobserved"}
    close(tree.posterior.y_unobserved, filled[..., [0, 1], [2, 0]])
    close(tree.log_prior.y_unobserved, stats.norm.logpdf(filled[..., [0, 1], [2, 0]], mu[..., None]))


def test_a_mask_that_hides_nothing_leaves_no_empty_variable() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 2):
            pyro.sample(
                "y", dist.Normal(mu, 1.0), obs=torch.zeros(2, dtype=F64), obs_mask=torch.ones(2).bool()
            )

    tree = from_pyro(model, {"mu": np.zeros((1, 4)), "y_unobserved": np.zeros((1, 4, 2))}, prior=3)
    assert set(tree.posterior.data_vars) == set(tree.prior.data_vars) == {"mu"}
    assert tree.log_likelihood.y_observed.dims == ("chain", "draw", "data")
    check_sums(tree)


def test_factors_and_weights() -> None:
    y = torch.tensor([0.5, 1.5], dtype=F64)

    def with_data() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        pyro.factor("sums_to_zero", dist.Normal(number(0.0), 0.1).log_prob(a.sum()))
        with pyro.plate("data", 2), poutine.scale(scale=torch.tensor([2.0, 3.0], dtype=F64)[0]):
            pyro.sample("y", dist.Normal(a[0], 1.0), obs=y)

    def factor_only() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", 2):
            pyro.factor("y", -((y - a[0]) ** 2))

    a = np.random.default_rng(5).normal(size=(1, 6, 2))
    tree = from_pyro(with_data, {"a": a}, **QUIET)
    close(tree.log_prior.sums_to_zero, stats.norm.logpdf(a.sum(-1), 0, 0.1))
    close(tree.log_likelihood.y, 2.0 * stats.norm.logpdf(y, a[..., :1]))
    assert tree.attrs["scaled_sites"] == ["y"]
    check_sums(tree)
    tree = from_pyro(factor_only, {"a": a}, **QUIET)
    close(tree.log_likelihood.y, -((y.numpy() - a[..., :1]) ** 2))
    assert tree.log_likelihood.y.dims == ("chain", "draw", "data")
    check_sums(tree)
