"""Densities of guides against SciPy, to 1e-6, and guides that have none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from datatree.programs.pyro_models import (
    F64,
    line_data,
    number,
    regression,
)
from numpy.typing import NDArray
from pyro.infer import autoguide
from scipy import stats

from bll_pyro.datatree import from_pyro
from bll_pyro.scope import isolated

Draws = dict[str, NDArray[Any]]
QUIET: dict[str, Any] = {"prior": False, "posterior_predictive": False}


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6, atol=1e-6)


def normal_guide(x: Any, y: Any) -> None:
    """A mean-field guide by hand: each site has a distribution on its own support."""
    pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=F64), number(0.3)).to_event(1))
    pyro.sample("bias", dist.Normal(number(0.1), 0.2))
    pyro.sample("noise", dist.LogNormal(number(-0.5), 0.4))


def log_q_normal(draws: Draws, guide: Any) -> NDArray[Any]:
    by_weight = stats.norm.logpdf(draws["weight"], 0, 0.3).sum(-1)
    by_bias = stats.norm.logpdf(draws["bias"], 0.1, 0.2)
    return by_weight + by_bias + stats.lognorm.logpdf(draws["noise"], 0.4, scale=np.exp(-0.5))


def log_q_of_vector(draws: Draws, guide: Any) -> NDArray[Any]:
    """A Normal over (weight, bias, log noise); the density of noise has the Jacobian 1 / noise."""
    latent = np.concatenate(
        [draws["weight"], draws["bias"][..., None], np.log(draws["noise"])[..., None]], -1
    )
    posterior = guide.get_posterior()
    loc = (posterior.base_dist.loc if hasattr(posterior, "base_dist") else posterior.loc).detach().numpy()
    if hasattr(posterior, "covariance_matrix"):
        cov = posterior.covariance_matrix.detach().numpy()
    else:
        cov = np.diag(posterior.variance.detach().numpy())
    return stats.multivariate_normal(loc, cov).logpdf(latent) - np.log(draws["noise"])


def log_q_by_site(draws: Draws, guide: Any) -> NDArray[Any]:
    """``AutoNormal``: a Normal for each unconstrained site."""
    total = -np.log(draws["noise"])
    for name, value in {**draws, "noise": np.log(draws["noise"])}.items():
        loc, scale = (getattr(part, name).detach().numpy() for part in (guide.locs, guide.scales))
        part = stats.norm.logpdf(value, loc, scale)
        total = total + (part.sum(-1) if name == "weight" else part)
    return total


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: normal_guide, log_q_normal),
        (lambda: autoguide.AutoNormal(regression), log_q_by_site),
        (lambda: autoguide.AutoDiagonalNormal(regression), log_q_of_vector),
        (lambda: autoguide.AutoMultivariateNormal(regression), log_q_of_vector),
        (lambda: autoguide.AutoLowRankMultivariateNormal(regression, rank=2), log_q_of_vector),
    ],
)
def test_guides(make: Callable[[], Any], expected: Callable[[Draws, Any], NDArray[Any]]) -> None:
    x, y = line_data()
    with isolated(0):
        guide = make()
        guide(x, y)  # makes its parameters
    if isinstance(guide, torch.nn.Module):
        with torch.no_grad():
            for number_, value in enumerate(guide.parameters()):
                value += 0.1 * torch.cos(torch.arange(value.numel(), dtype=F64) + number_).reshape(
                    value.shape
                )
    tree = from_pyro(regression, guide=guide, args=(x, y), num_draws=50, **QUIET)
    draws = {name: tree.posterior[name].values for name in ("weight", "bias", "noise")}
    assert tree.attrs["evaluation"] == "vectorised"
    assert len(np.unique(draws["bias"])) == 50
    with torch.no_grad():
        close(tree.sample_stats.log_q, expected(draws, guide))
    mean = draws["weight"] @ x.numpy().T + draws["bias"][..., None]
    likelihood = stats.norm.logpdf(y, mean, draws["noise"][..., None]).sum(-1)
    prior = stats.norm.logpdf(draws["weight"], 0, 2).sum(-1) + stats.norm.logpdf(draws["bias"], 0, 5)
    close(tree.sample_stats.log_p, likelihood + prior + stats.halfnorm.logpdf(draws["noise"], scale=2))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: autoguide.AutoDelta(regression),
            "point mass in ['weight', 'bias', 'noise']: 0 random numbers set 5",
        ),
        (lambda: autoguide.AutoLaplaceApproximation(regression), "point mass"),
        (lambda: half_points, "1 random numbers set 2"),
        (lambda: surplus, "1 auxiliary numbers and sets 0"),
    ],
)
def test_guides_without_a_density_say_so(make: Callable[[], Any], reason: str) -> None:
    x, y = line_data()
    with isolated(0):
        guide = make()
        guide(x, y)
    tree = from_pyro(regression, guide=guide, args=(x, y), num_draws=5, **QUIET)
    assert reason in tree.attrs["log_q_missing"]
    assert "log_q" not in tree.sample_stats
    assert "log_p" in tree.sample_stats


def half_points(x: Any, y: Any) -> None:
    """Two sites from one number."""
    u = pyro.sample("u", dist.Normal(number(0.0), 1.0), infer={"is_auxiliary": True})
    pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=F64), number(0.3)).to_event(1))
    pyro.sample("bias", dist.Delta(u))
    pyro.sample("noise", dist.Delta(u.exp()))


def surplus(x: Any, y: Any) -> None:
    """A site that depends on a number which is not a site of the model."""
    u = pyro.sample("u", dist.Normal(number(0.0), 1.0), infer={"is_auxiliary": True})
    pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=F64), number(0.3)).to_event(1))
    pyro.sample("bias", dist.Normal(u, 1.0))
    pyro.sample("noise", dist.LogNormal(number(0.0), 1.0))
