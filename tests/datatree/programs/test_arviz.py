"""Three models of Pyro's examples as trees: their groups, ArviZ on them, and files of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from datatree.programs.pyro_models import (
    EFFECTS,
    ERRORS,
    SCHOOLS,
    eight_schools,
    line_data,
    number,
    radon,
    radon_data,
    regression,
    run_nuts,
    train,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from bll_pyro.datatree import RecordingNUTS, from_pyro

Tree = xr.DataTree


@pytest.fixture(scope="module")
def trees() -> dict[str, Tree]:
    """Eight schools by NUTS, a regression by a full-rank guide, a hierarchical model by mean-field on subsamples."""
    mcmc = run_nuts(RecordingNUTS(eight_schools), ERRORS, EFFECTS, num_draws=100, warmup=80, num_chains=2)
    line, houses = line_data(), radon_data()
    full, varying = AutoMultivariateNormal(regression), AutoNormal(radon)
    train(regression, full, *line)
    train(radon, varying, *houses)
    names = {"weight": ["feature"], "x": ["data", "feature"]}
    x = {"x": line[0]}
    return {
        "schools": from_pyro(mcmc=mcmc, coords={"school": SCHOOLS}),
        "line": from_pyro(
            regression,
            guide=full,
            args=line,
            constant_data=x,
            dims=names,
            coords={"feature": ["a", "b", "c"]},
        ),
        "radon": from_pyro(radon, guide=varying, args=houses, num_draws=400),
    }


def parameters(tree: Tree) -> list[str]:
    """Variables of the posterior that are not one for each row."""
    return [str(name) for name in tree.posterior.data_vars if name != "mean"]


CALLS: dict[str, Callable[[Tree], Any]] = {
    "summary": az.summary,
    "loo": lambda tree: az.loo(tree, pointwise=True),
    "psense_summary": az.psense_summary,
    "loo_pit": az.loo_pit,
    "compare": lambda tree: az.compare({"one": tree, "two": tree}),
    "plot_forest": az.plot_forest,
    "plot_ppc_dist": az.plot_ppc_dist,
    "plot_ppc_pit": az.plot_ppc_pit,
    "plot_prior_posterior": lambda tree: az.plot_prior_posterior(tree, var_names=parameters(tree)),
    "plot_khat": lambda tree: az.plot_khat(az.loo(tree, pointwise=True)),
    "plot_trace_dist": lambda tree: az.plot_trace_dist(tree, var_names=parameters(tree)),
}
OF_GUIDES: dict[str, Callable[[Tree], Any]] = {
    "loo_approximate_posterior": lambda tree: az.loo_approximate_posterior(
        tree, tree.sample_stats.log_p, tree.sample_stats.log_q, pointwise=True
    ),
}
OF_CHAINS: dict[str, Callable[[Tree], Any]] = {
    "plot_rank": az.plot_rank,
    "plot_energy": az.plot_energy,
    "diagnose": lambda tree: az.diagnose(tree, show_diagnostics=False),
}


@pytest.mark.nuts
@pytest.mark.parametrize(
    ("model", "call"),
    [
        *((model, call) for model in ("schools", "line", "radon") for call in CALLS),
        *((model, call) for model in ("line", "radon") for call in OF_GUIDES),
        *(("schools", call) for call in OF_CHAINS),
    ],
)
# High k-hats of eight schools and of a mean-field guide are true, and ArviZ is right to warn of them.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution is greater")
def test_arviz_takes_the_tree_as_it_is(trees: dict[str, Tree], model: str, call: str) -> None:
    result = (CALLS | OF_GUIDES | OF_CHAINS)[call](trees[model])
    plt.close("all")
    assert result is not None
    for estimate in ("elpd", "se", "p"):
        assert np.all(np.isfinite(getattr(result, estimate, 0.0)))


@pytest.mark.nuts
def test_groups_dims_and_coords(trees: dict[str, Tree]) -> None:
    schools, line, varying = trees["schools"], trees["line"], trees["radon"]
    both = {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "sample_stats",
        "observed_data",
    }
    assert set(schools.children) == both | {"prior", "prior_predictive"}
    assert set(line.children) == both | {"prior", "prior_predictive", "constant_data"}
    assert schools.posterior.theta.dims == ("chain", "draw", "school")
    assert dict(schools.posterior.sizes) == {"chain": 2, "draw": 100, "school": 8}
    assert list(schools.log_likelihood.school.values) == SCHOOLS
    assert line.posterior.weight.dims == ("chain", "draw", "feature")
    assert line.log_prior.weight.dims == ("chain", "draw")
    assert line.constant_data.x.dims == ("data", "feature")
    assert list(line.constant_data.feature.values) == ["a", "b", "c"]
    assert varying.log_likelihood.log_radon.dims == ("chain", "draw", "house")
    assert varying.posterior_predictive.sizes["house"] == 90, (
        "the plate sees 40 rows at a time, the tree has all"
    )
    assert varying.posterior["level"].dims == ("chain", "draw", "county")
    assert varying.prior.sizes["draw"] == 400


@pytest.mark.nuts
def test_attributes_say_how_it_was_made(trees: dict[str, Tree]) -> None:
    schools, line = trees["schools"], trees["line"]
    assert schools.attrs["inference"] == "RecordingNUTS"
    assert "independent_draws" not in schools.attrs
    assert len(schools.attrs["accepted_transitions"]) == 2
    assert line.attrs["inference"] == "AutoMultivariateNormal"
    assert line.posterior.attrs["independent_draws"] == line.attrs["independent_draws"] == 1
    assert "independent_draws" not in line.prior.attrs
    assert line.attrs["inference_library_version"] == pyro.__version__
    assert line.attrs["seed"] == 0
    assert all(tree.attrs["evaluation"] == "vectorised" for tree in trees.values())


@pytest.mark.nuts
@pytest.mark.parametrize("model", ["schools", "line", "radon"])
def test_files_give_back_the_tree(trees: dict[str, Tree], model: str, tmp_path: Path) -> None:
    tree = trees[model]
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as read:
        assert tree.equals(read.load())
        assert read.attrs["inference"] == tree.attrs["inference"]
    tree.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    with xr.open_datatree(tmp_path / "tree.zarr", engine="zarr", consolidated=False) as read:
        assert tree.equals(read.load())
        assert read.attrs["seed"] == tree.attrs["seed"]


@pytest.mark.nuts
def test_the_regression_agrees_with_least_squares(trees: dict[str, Tree]) -> None:
    x, y = (part.numpy() for part in line_data())
    design = np.column_stack([x, np.ones(len(x))])
    best, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    spread = np.sqrt(residual[0] / (len(x) - 4) * np.diag(np.linalg.inv(design.T @ design)))
    mean = trees["line"].posterior.weight.mean(("chain", "draw"))
    assert np.all(np.abs(mean - best[:3]) < 0.7 * spread[:3])
    # the new data have the spread of the data
    predicted = trees["line"].posterior_predictive.y - trees["line"].posterior["mean"]
    assert float(predicted.std()) == pytest.approx(np.sqrt(residual[0] / (len(x) - 4)), rel=0.1)


def test_loo_of_a_wrong_guide_is_corrected_to_the_exact_one() -> None:
    y = torch.tensor(np.random.default_rng(5).normal(0.7, 1.0, size=25))

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 25, subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[rows])

    def guide() -> None:
        pyro.sample("theta", dist.Normal(y.mean() - 0.1, 0.3))  # the posterior has the scale 0.196

    tree = from_pyro(model, guide=guide, num_draws=4000, prior=False)
    estimate = az.loo_approximate_posterior(tree, tree.sample_stats.log_p, tree.sample_stats.log_q)
    others = y.sum() - y  # without row n the posterior is N(others / 25, 1 / 25)
    exact = dist.Normal(others / 25, (1 + 1 / 25) ** 0.5).log_prob(y).sum().item()
    assert estimate.elpd == pytest.approx(exact, abs=0.05)
    assert abs(az.loo(tree).elpd - exact) > 0.2
