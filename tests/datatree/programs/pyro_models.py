"""Models in the manner of Pyro's examples, written anew, and the posteriors that the tests convert."""

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, SVI, Trace_ELBO
from torch import Tensor

from bll_pyro.scope import isolated

F64 = torch.float64
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=F64)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=F64)
SCHOOLS = ["Andover", "Brighton", "Concord", "Dover", "Essex", "Fulton", "Groton", "Hull"]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def eight_schools(errors: Tensor, effects: Tensor | None = None) -> None:
    """Coaching effects in parallel experiments (Rubin 1981), non-centred."""
    mu = pyro.sample("mu", dist.Normal(number(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(number(5.0)))
    with pyro.plate("school", len(errors)):
        eta = pyro.sample("eta", dist.Normal(number(0.0), 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, errors), obs=effects)


def line_data(num_rows: int = 60) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num_rows, 3))
    y = x @ [1.0, -0.5, 0.0] + 0.3 + 0.5 * rng.normal(size=num_rows)
    return torch.tensor(x), torch.tensor(y)


def regression(x: Tensor, y: Tensor | None = None) -> None:
    """Linear regression with unknown noise."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=F64), 2.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(number(0.0), 5.0))
    noise = pyro.sample("noise", dist.HalfNormal(number(2.0)))
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", x @ weight + bias)
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


def radon_data() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(2)
    county = np.sort(rng.integers(0, 9, size=90))
    floor = (rng.random(90) < 0.3).astype(float)
    level = 1.3 + 0.4 * rng.normal(size=9)
    return (
        torch.tensor(county),
        torch.tensor(floor),
        torch.tensor(level[county] - 0.6 * floor + 0.6 * rng.normal(size=90)),
    )


def radon(county: Tensor, floor: Tensor, log_radon: Tensor | None = None) -> None:
    """Varying intercepts by county (Gelman and Hill 2007, chapter 12), with the data subsampled in training."""
    mu = pyro.sample("mu", dist.Normal(number(0.0), 2.0))
    spread = pyro.sample("spread", dist.Exponential(number(1.0)))
    slope = pyro.sample("slope", dist.Normal(number(0.0), 2.0))
    noise = pyro.sample("noise", dist.Exponential(number(1.0)))
    with pyro.plate("county", 9):
        level = pyro.sample("level", dist.Normal(mu, spread))
    with pyro.plate("house", len(county), subsample_size=40) as rows:
        seen = None if log_radon is None else log_radon[rows]
        pyro.sample("log_radon", dist.Normal(level[county[rows]] + slope * floor[rows], noise), obs=seen)


def run_nuts(
    kernel: Any, *args: Any, num_draws: int, warmup: int, num_chains: int = 1, hook: Any = None
) -> MCMC:
    """Run chains one after another, on a machine of any size."""
    with (
        isolated(0),
        mock.patch("pyro.infer.mcmc.api.mp.cpu_count", return_value=99 if num_chains == 1 else 1),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="num_chains")
            options = {"num_chains": num_chains, "hook_fn": hook, "disable_progbar": True}
            mcmc = MCMC(kernel, num_samples=num_draws, warmup_steps=warmup, **options)
        mcmc.run(*args)
    return mcmc


def train(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, num_steps: int = 300, lr: float = 0.1
) -> None:
    """Train a guide in a store of its own; a module keeps its parameters."""
    with isolated(0):
        svi = SVI(
            model, guide, pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.1 ** (1 / num_steps)}), Trace_ELBO()
        )
        for _ in range(num_steps):
            svi.step(*args)
