"""Shapes and names of sites: plates, events, several data, other ways to write a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from datatree.programs.pyro_models import (
    EFFECTS,
    ERRORS,
    F64,
    number,
)
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from scipy import stats

from bll_pyro.datatree import from_pyro

QUIET: dict[str, Any] = {"prior": False, "posterior_predictive": False}


def by_hand(model: Callable[[], Any], draws: dict[str, Any], site: str) -> np.ndarray:
    """Log-density of a site by Pyro itself, draw by draw."""
    rows = []
    for s in range(next(iter(draws.values())).shape[1]):
        values = {name: torch.as_tensor(value[0, s]) for name, value in draws.items()}
        trace = poutine.trace(poutine.condition(model, values)).get_trace()
        trace.compute_log_prob()
        rows.append(trace.nodes[site]["log_prob"].numpy())
    return np.stack(rows)[None]


def test_plates_events_and_fillers() -> None:
    y = torch.zeros(4, 5, 2, dtype=F64)

    def model() -> None:
        rows, columns = pyro.plate("row", 4, dim=-2), pyro.plate("column", 5, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(number(0.0), 1.0))  # [4, 1]
            pyro.deterministic("twice", 2 * a, event_dim=0)
        one = pyro.sample("one", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
        with columns:
            b = pyro.sample("b", dist.Dirichlet(torch.ones(3, dtype=F64)))  # [5 | 3]
            with rows:
                loc = torch.stack(torch.broadcast_tensors(a + one, b[..., 0]), -1)
                pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    rng = np.random.default_rng(0)
    draws = {
        "a": rng.normal(size=(1, 6, 4, 1)),
        "one": rng.normal(size=(1, 6, 1)),
        "b": rng.dirichlet(np.ones(3), (1, 6, 5)),
    }
    tree = from_pyro(model, draws, dims={"b": [None, "part"], "y": ["row", "column", "output"]}, prior=7)
    posterior, groups = tree.posterior, tree.children
    assert posterior.a.dims == posterior.twice.dims == ("chain", "draw", "row")
    assert posterior.one.dims == ("chain", "draw", "one_dim_0")
    assert posterior.b.dims == ("chain", "draw", "column", "part")
    assert tree.log_prior.b.dims == ("chain", "draw", "column")
    assert tree.log_likelihood.y.dims == ("chain", "draw", "row", "column")
    assert tree.posterior_predictive.y.dims == ("chain", "draw", "row", "column", "output")
    assert tree.observed_data.y.dims == ("row", "column", "output")
    assert dict(groups["prior"].sizes) == {
        "chain": 1,
        "draw": 7,
        "row": 4,
        "one_dim_0": 1,
        "column": 5,
        "part": 3,
    }
    np.testing.assert_array_equal(posterior.twice, 2 * posterior.a)
    np.testing.assert_allclose(tree.log_likelihood.y, by_hand(model, draws, "y"), rtol=1e-6)


def test_several_data_and_plates_of_steps() -> None:
    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.full((3,), 2.0, dtype=F64), number(1.0)).to_event(1))
        with pyro.plate("kind", 3):
            pyro.sample("count", dist.Poisson(rate), obs=torch.tensor([1.0, 2.0, 3.0], dtype=F64))
        with pyro.plate("rows", 4):  # one law, four rows
            pyro.sample("many", dist.Normal(rate[0], 1.0), obs=torch.arange(4, dtype=F64))
        for i in pyro.plate("step", 2):
            pyro.sample(f"z_{i}", dist.Normal(rate[i], 1.0), obs=number(0.5))

    draws = {"rate": np.random.default_rng(1).gamma(2.0, size=(2, 5, 3))}
    tree = from_pyro(model, draws, prior=4)
    assert tree.posterior.rate.dims == ("chain", "draw", "rate_dim_0")
    assert set(tree.log_likelihood.data_vars) == {"count", "many", "z_0", "z_1"}
    assert tree.posterior_predictive.many.shape == (2, 5, 4)
    assert tree.log_likelihood.z_1.shape == (2, 5)
    expected = stats.norm.logpdf(np.arange(4), draws["rate"][..., :1])
    np.testing.assert_allclose(tree.log_likelihood.many, expected, rtol=1e-6)
    assert tree.prior_predictive.many.std("rows").min() > 0, "new rows are drawn one by one"


def test_weights_of_rows_are_a_part_of_the_model() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=F64)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=weight):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(3, dtype=F64))

    tree = from_pyro(model, {"mu": np.full((1, 4), 0.3)}, prior=False)
    expected = weight.numpy() * stats.norm.logpdf(np.arange(3), 0.3)
    np.testing.assert_allclose(tree.log_likelihood.y[0, 0], expected, rtol=1e-6)
    assert tree.attrs["scaled_sites"] == ["y"]


def test_a_model_conditioned_from_outside() -> None:
    def free() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0))

    y = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    tree = from_pyro(poutine.condition(free, data={"y": y}), {"mu": np.full((1, 500), 9.0)}, prior=5)
    np.testing.assert_allclose(tree.log_likelihood.y[0, 0], stats.norm.logpdf(y, 9.0), rtol=1e-6)
    assert float(tree.posterior_predictive.y.mean()) == pytest.approx(9.0, abs=0.2)


def test_reparameterised_sites_are_deterministic() -> None:
    def centred() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 5.0))
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, number(3.0)))
            pyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)

    model = poutine.reparam(centred, config={"theta": LocScaleReparam(0.0)})
    draws = {"mu": np.ones((1, 3)), "theta_decentered": np.full((1, 3, 8), 2.0)}
    tree = from_pyro(model, draws, prior=5)
    assert set(tree.log_prior.data_vars) == {"mu", "theta_decentered"}
    np.testing.assert_allclose(tree.posterior.theta, 1.0 + 3.0 * 2.0)
    assert tree.posterior.theta.dims == ("chain", "draw", "school")


def test_float32_models_and_names_with_a_slash() -> None:
    def model() -> None:
        a = pyro.sample("group/a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Bernoulli(logits=a), obs=torch.tensor([0.0, 1.0, 1.0]))

    tree = from_pyro(model, {"group/a": torch.zeros(1, 4)}, prior=5)
    assert "group.a" in tree.posterior
    assert tree.posterior["group.a"].dtype == np.float32
    assert tree.log_likelihood.y.dtype == np.float64
