"""Input that doesn't fit together: what was expected, what was got, and what to do."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from datatree.programs.pyro_models import EFFECTS, ERRORS, F64, eight_schools, number, regression
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

from bll_pyro.datatree import from_pyro

ARGS = (ERRORS, EFFECTS)


def draws(**changes: Any) -> dict[str, Any]:
    """Good draws of eight schools, with changes; None takes a site out."""
    good = {"mu": np.zeros((2, 4)), "tau": np.ones((2, 4)), "eta": np.zeros((2, 4, 8))}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


BROKEN = np.zeros((2, 4))
BROKEN[1, 2] = np.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"posterior_samples": draws(), "guide": regression},
            r"one source of draws, got \['posterior_samples', 'guide'\]",
        ),
        ({"mcmc": object(), "guide": regression}, r"one source of draws, got \['guide', 'mcmc'\]"),
        ({"prior": False}, "nothing to convert"),
        ({"posterior_samples": {}}, "posterior_samples is empty"),
        (
            {"posterior_samples": draws(mu=BROKEN)},
            "'mu' hold NaN or infinite values in 1 of 8 draws, first at chain 1, draw 2",
        ),
        ({"posterior_samples": draws(mu=np.zeros((2, 5)))}, "same number of chains and draws"),
        ({"posterior_samples": draws(mu=np.zeros(8))}, r"'mu' have shape \(8,\).*sample_dims=\('draw',\)"),
        (
            {"posterior_samples": draws(eta=np.zeros((2, 4, 7)))},
            r"'eta' has shape \(7,\), but the model gives .* \(8,\)",
        ),
        ({"posterior_samples": draws(tau=None)}, "the draws lack the latent site 'tau'"),
        ({"posterior_samples": draws(rho=np.zeros((2, 4)))}, r"draws of \['rho'\], but the model has only"),
        ({"posterior_samples": draws(y=np.zeros((2, 4, 8)))}, r"draws of \['y'\], which the model observes"),
        ({"posterior_samples": draws(), "sample_dims": ("sample",)}, "sample_dims must be"),
        (
            {"posterior_samples": draws(), "args": (ERRORS,)},
            "the draws lack the latent site 'y'.*pass the data",
        ),
        ({"posterior_samples": draws(), "dims": {"eta": ["a", "b"]}}, r"'eta' has 1 axes .*\['school'\]"),
        ({"posterior_samples": draws(), "dims": {"eta": "school"}}, "Give a list of 1 names"),
        ({"posterior_samples": draws(), "dims": {"eta": ["draw"]}}, "rename some of them by dims"),
        ({"posterior_samples": draws(), "dims": {"eta": ["mu"]}}, "is also a variable"),
        (
            {"posterior_samples": draws(), "coords": {"school": list("abc")}},
            r"has shape \(3,\), but .* 8 entries",
        ),
        (
            {"posterior_samples": draws(), "coords": {"shcool": list("abcdefgh")}},
            r"coords names .*\['shcool'\]",
        ),
        (
            {
                "posterior_samples": draws(),
                "constant_data": {"x": np.zeros(3)},
                "dims": {"x": ["school", "b"]},
            },
            "'x' has 1",
        ),
        ({"posterior_samples": draws(), "dims": {"eat": ["school"]}}, r"dims names the variables \['eat'\]"),
        ({"num_draws": 0}, "at least one draw; got num_draws=0"),
        ({"prior": 0}, "nothing to convert|at least one draw"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"guide": AutoNormal(eight_schools)}, "has never run"),
        ({"mcmc": MCMC(NUTS(eight_schools), num_samples=2, disable_progbar=True)}, "has no samples"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_pyro(eight_schools, **{"args": ARGS, **arguments})


def test_a_model_is_needed() -> None:
    with pytest.raises(ValueError, match="model is missing"):
        from_pyro(posterior_samples=draws())


def test_a_model_without_data_has_no_likelihood() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(number(0.0), 1.0))

    with pytest.raises(ValueError, match=r"observes nothing .* log_likelihood=False"):
        from_pyro(model, {"a": np.zeros((1, 3))})
    tree = from_pyro(model, {"a": np.zeros((1, 3))}, log_likelihood=False, prior=3)
    assert set(tree.children) == {"posterior", "log_prior", "prior"}


def test_data_that_the_likelihood_cannot_have_made() -> None:
    def model(y: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Exponential(number(1.0)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    for bad in (torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([1.0, np.nan], dtype=F64)):
        with pytest.raises(
            ValueError, match=r"data of site 'y' lie outside the support .* in 1 rows, the first .*\(1,\)"
        ):
            from_pyro(model, {"rate": np.ones((1, 3))}, args=(bad,))


N = 6
ROWS, COLUMN = torch.zeros(N, dtype=F64), torch.zeros(N, 1, dtype=F64)


@pytest.mark.parametrize(
    "case",
    ["data", "mean", "mask", "scale", "event", "no plate", "latent", "factor", "rows"],
)
def test_axes_that_no_plate_declares(case: str) -> None:
    """``[N]`` against ``[N, 1]`` would be a density of N times N rows, which Pyro's ELBO refuses and MCMC does not."""

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        if case == "latent":
            pyro.sample("z", dist.Normal(ROWS, 1.0))
        if case == "no plate":
            pyro.sample("y", dist.Normal(mu + ROWS, 1.0), obs=ROWS)
            return
        data = {"data": COLUMN, "event": ROWS, "rows": torch.zeros(N + 1, dtype=F64)}.get(case, ROWS)
        mean = mu + (COLUMN if case in ("mean", "event") else ROWS)
        law = dist.Normal(mean, 1.0).to_event(1) if case == "event" else dist.Normal(mean, 1.0)
        mask = COLUMN.bool() if case == "mask" else True
        with pyro.plate("data", N), poutine.mask(mask=mask):
            with poutine.scale(scale=COLUMN + 2 if case == "scale" else 1.0):
                pyro.sample("y", law, obs=data)
            if case == "factor":
                pyro.factor("penalty", COLUMN * mu)

    site = {"latent": "z", "factor": "penalty"}.get(case, "y")
    draws = {"mu": np.zeros((1, 3)), **({"z": np.zeros((1, 3, N))} if case == "latent" else {})}
    with pytest.raises(
        ValueError, match=f"{site}'?: expected a (log-density with the axes|value of the shape)"
    ):
        from_pyro(model, draws)


def test_axes_of_guides_and_of_new_rows_are_checked_too() -> None:
    def model(y: torch.Tensor | None, mean: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(mean)):
            pyro.sample("y", dist.Normal(mu + mean, 1.0), obs=y)

    def guide(y: torch.Tensor | None, mean: torch.Tensor) -> None:
        pyro.sample("mu", dist.Normal(torch.zeros(2, dtype=F64), 1.0))

    with pytest.raises(
        ValueError, match="site 'mu': expected a log-density with the axes of its plates, none"
    ):
        from_pyro(model, guide=guide, args=(ROWS, ROWS))
    with pytest.raises(ValueError, match="site 'y': expected a log-density with the axes of its plates"):
        from_pyro(model, {"mu": np.zeros((1, 3))}, args=(ROWS, ROWS), predictions_args=(None, COLUMN))


def test_part_of_the_rows_is_not_enough() -> None:
    def model(y: torch.Tensor, rows: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 10, subsample=rows):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match="plate 'data' is given 4 of its 10 rows"):
        from_pyro(model, {"mu": np.zeros((1, 3))}, args=(torch.zeros(4, dtype=F64), torch.arange(4)))


def test_a_site_outside_the_plate_must_not_depend_on_its_rows() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 10, subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(10, dtype=F64)[rows])
        pyro.deterministic("mean", rows.double().mean())

    with pytest.raises(ValueError, match=r"'mean' lies outside the subsampled plates \['data'\]"):
        from_pyro(model, {"mu": np.zeros((1, 3))})


def test_discrete_sites_that_tie_rows_together() -> None:
    def shared() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        z = pyro.sample("z", dist.Bernoulli(number(0.3)))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mu + z, 1.0), obs=torch.zeros(4, dtype=F64))

    def two_data() -> None:
        mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(number(0.3)))
            for name in ("y", "x"):
                pyro.sample(name, dist.Normal(mu + z, 1.0), obs=torch.zeros(4, dtype=F64))

    def latent_child() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(number(0.3)))
            mu = pyro.sample("mu", dist.Normal(z, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(4, dtype=F64))

    for model, shape, message in (
        (shared, (1, 3), r"only if these sites are in the same plates, \['data'\]; got \{'z': \[\]\}"),
        (two_data, (1, 3), r"only for one observed site; got \['y', 'x'\]"),
        (latent_child, (1, 3, 4), "latent site 'mu' depends on the discrete sites"),
    ):
        with pytest.raises(ValueError, match=message):
            from_pyro(model, {"mu": np.zeros(shape)})
        tree = from_pyro(model, {"mu": np.zeros(shape)}, log_likelihood=False, log_prior=False, prior=3)
        assert "posterior_predictive" in tree.children


def test_distributions_without_a_sampler() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(2))

    with pytest.raises(ValueError, match=r"cannot be sampled .*set prior=False"):
        from_pyro(model, {"a": np.zeros((1, 3), dtype=np.float32)})
    tree = from_pyro(model, {"a": np.zeros((1, 3), dtype=np.float32)}, prior=False)
    np.testing.assert_array_equal(tree.log_prior.a, 0.0)


def test_draws_where_the_density_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="log-density of site 'y' is NaN at draw 0"):
        from_pyro(
            eight_schools, draws(), args=(ERRORS * np.nan, EFFECTS), posterior_predictive=False, prior=False
        )
