"""Guides: where their parameters are, what they may be, and their densities on all rows."""

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
from pyro.infer import autoguide
from pyro.infer.enum import get_importance_trace
from scipy import stats

from bll_pyro.datatree import from_pyro
from bll_pyro.scope import isolated

QUIET: dict[str, Any] = {"prior": False, "posterior_predictive": False}


def test_latent_rows_of_a_subsampled_plate() -> None:
    """Guide and model see 4 of 10 rows at a time; their densities are those of all rows."""
    y = torch.arange(10, dtype=F64)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 2.0))
        with pyro.plate("data", 10, subsample_size=4) as rows:
            z = pyro.sample("z", dist.LogNormal(mu, number(1.0)))
            pyro.deterministic("double", 2 * z, event_dim=0)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    with isolated(0):
        guide = autoguide.AutoNormal(model)
        guide()
        with torch.no_grad():
            guide.locs.z_unconstrained.copy_(y / 10)
    for vectorize in (True, False):
        tree = from_pyro(model, guide=guide, num_draws=6, vectorize=vectorize, prior=8)
        mu, z = tree.posterior.mu.values, tree.posterior.z.values
        assert z.shape == (1, 6, 10)
        np.testing.assert_array_equal(tree.posterior.double, 2 * z)
        log_q = stats.norm.logpdf(mu, guide.locs.mu.item(), 0.1)
        log_q = log_q + stats.lognorm.logpdf(z, 0.1, scale=np.exp(y.numpy() / 10)).sum(-1)
        np.testing.assert_allclose(tree.sample_stats.log_q, log_q, rtol=1e-6)
        log_p = stats.norm.logpdf(mu, 0, 2) + stats.norm.logpdf(y, z).sum(-1)
        log_p = log_p + stats.lognorm.logpdf(z, 1.0, scale=np.exp(mu)[..., None]).sum(-1)
        np.testing.assert_allclose(tree.sample_stats.log_p, log_p, rtol=1e-6)
        assert (np.abs(tree.posterior_predictive.y.values - z) < 6).all()
        assert tree.prior.z.shape == (1, 8, 10)


def trained_by_function(x: Any, y: Any) -> None:
    loc = pyro.param("loc", torch.zeros(3, dtype=F64))
    pyro.sample("weight", dist.Normal(loc, number(0.01)).to_event(1))
    pyro.sample("bias", dist.Normal(pyro.param("bias_loc", number(0.0)), 0.01))
    pyro.sample("noise", dist.LogNormal(number(-1.0), 0.1))


def test_a_guide_by_hand_has_its_parameters_in_the_store() -> None:
    x, y = line_data()
    with isolated(0):
        pyro.param("loc", torch.tensor([1.0, 2.0, 3.0], dtype=F64))
        pyro.param("bias_loc", number(-4.0))
        tree = from_pyro(regression, guide=trained_by_function, args=(x, y), num_draws=200, **QUIET)
        state = pyro.get_param_store().get_state()
    means = tree.posterior.weight.mean(("chain", "draw"))
    np.testing.assert_allclose(means, [1.0, 2.0, 3.0], atol=0.01)
    assert float(tree.posterior.bias.mean()) == pytest.approx(-4.0, abs=0.01)
    assert tree.attrs["inference"] == "trained_by_function"
    with pytest.raises(
        ValueError, match=r"parameters \['bias_loc', 'loc'\] are not in Pyro's parameter store"
    ):
        from_pyro(regression, guide=trained_by_function, args=(x, y), num_draws=5, **QUIET)
    assert not pyro.get_param_store().keys()
    with pyro.get_param_store().scope(state):
        again = from_pyro(regression, guide=trained_by_function, args=(x, y), num_draws=200, **QUIET)
    assert again.equals(tree)


def test_two_guides_of_one_name_are_told_apart() -> None:
    x, y = line_data()
    guides = []
    for loc in (1.0, 2.0):
        with isolated(0):
            guide = autoguide.AutoNormal(
                regression, init_loc_fn=autoguide.initialization.init_to_value(values={})
            )
            guide(x, y)
            with torch.no_grad():
                guide.locs.bias_unconstrained.fill_(loc)
        guides.append(guide)
    for loc, guide in zip((1.0, 2.0), guides):
        tree = from_pyro(regression, guide=guide, args=(x, y), num_draws=100, **QUIET)
        assert float(tree.posterior.bias.mean()) == pytest.approx(loc, abs=0.05)
    with isolated(0):
        guides[0](x, y)  # its values are in the store now, under the names of both
        from_pyro(regression, guide=guides[0], args=(x, y), num_draws=3, **QUIET)
        with pytest.raises(ValueError, match=r"'AutoNormal.locs.bias' of a AutoNormal differs"):
            from_pyro(regression, guide=guides[1], args=(x, y), num_draws=3, **QUIET)
    assert guides[1].locs.bias.item() == 2.0


@pytest.mark.parametrize(
    "make", [autoguide.AutoIAFNormal, autoguide.AutoNormalMessenger, autoguide.AutoStructured]
)
def test_other_guides_have_the_density_of_pyros_elbo(make: Any) -> None:
    options: dict[Any, Any] = {
        autoguide.AutoIAFNormal: {"hidden_dim": [12]},
        autoguide.AutoNormalMessenger: {"init_loc_fn": autoguide.initialization.init_to_feasible},
        autoguide.AutoStructured: {
            "conditionals": dict.fromkeys(("mu", "tau", "eta"), "normal"),
            "dependencies": {"eta": {"mu": "linear"}},
        },
    }

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("school", 3):
            eta = pyro.sample("eta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(eta, tau), obs=torch.arange(3.0))

    with isolated(0):
        guide = make(model, **options[make])
        guide()
        by_pyro = []
        for _ in range(200):
            model_trace, guide_trace = get_importance_trace("flat", 1, model, guide, (), {})
            by_pyro.append((guide_trace.log_prob_sum().item(), model_trace.log_prob_sum().item()))
    tree = from_pyro(model, guide=guide, num_draws=2000, **QUIET)
    assert set(tree.posterior.data_vars) == {"mu", "tau", "eta"}
    assert len(np.unique(tree.posterior.mu)) > 1990
    for column, name in zip(np.transpose(by_pyro), ("log_q", "log_p")):
        error = column.std() / np.sqrt(len(column))
        assert float(tree.sample_stats[name].mean()) == pytest.approx(column.mean(), abs=4 * error)
