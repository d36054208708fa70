"""Draws at once and one by one: the same numbers, the same laws, and a reason where only one of the two will do."""

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
    radon,
    radon_data,
)
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroSample
from scipy import stats

from bll_pyro.datatree import from_pyro
from bll_pyro.scope import isolated

QUIET: dict[str, Any] = {"prior": False, "posterior_predictive": False}


def test_draws_in_several_calls_are_the_draws_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    draws = {name: rng.gamma(3.0, 0.3, size=(1, 11)) for name in ("mu", "spread", "slope", "noise")}
    draws["level"] = rng.normal(size=(1, 11, 9))
    whole = from_pyro(radon, draws, args=radon_data(), **QUIET)
    monkeypatch.setattr("bll_pyro.datatree.programs.runs.NUMBERS_AT_ONCE", 800)  # three draws
    parts = from_pyro(radon, draws, args=radon_data(), prior=11)
    assert parts.attrs["evaluation"] == "vectorised"
    assert whole.log_likelihood.equals(parts.log_likelihood)
    assert (
        len(np.unique(parts.prior.mu)) == len(np.unique(parts.posterior_predictive.log_radon[..., 0])) == 11
    )


class Net(PyroModule):
    """A Bayesian layer that knows nothing of plates: only ``torch.vmap`` runs it on many draws at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](3, 4, dtype=F64)
        self.layer.weight = PyroSample(dist.Normal(number(0.0), 1.0).expand([4, 3]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(number(0.0), 1.0).expand([4]).to_event(1))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.layer(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)
        return logits


def branching(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
    mean = mu if mu > 0 else -mu  # a branch on a value
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def counting(y: torch.Tensor) -> None:
    """Gives other numbers when it runs at once: it counts its own calls."""
    counting.calls = getattr(counting, "calls", 0) + 1  # type: ignore[attr-defined]
    mu = pyro.sample("mu", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + counting.calls, 1.0), obs=y)  # type: ignore[attr-defined]


def test_a_module_without_plates_is_vectorised() -> None:
    x, y = line_data()[0], torch.arange(60) % 4
    with isolated(0):
        net = Net()
        guide = autoguide.AutoDiagonalNormal(net)
        guide(x, y)
    tree = from_pyro(net, guide=guide, args=(x, y), num_draws=20)
    assert tree.attrs["evaluation"] == "vectorised"
    assert tree.posterior["layer.weight"].dims == (
        "chain",
        "draw",
        "layer.weight_dim_0",
        "layer.weight_dim_1",
    )
    weight, bias = tree.posterior["layer.weight"].values[0], tree.posterior["layer.bias"].values[0]
    logits = np.einsum("nd,skd->snk", x.numpy(), weight) + bias[:, None]
    expected = torch.log_softmax(torch.tensor(logits), -1)[:, torch.arange(60), y]
    np.testing.assert_allclose(tree.log_likelihood.y[0], expected, rtol=1e-6)
    assert tree.posterior_predictive.y.dtype == np.int64


def test_what_does_not_vectorise_runs_one_by_one_and_says_why() -> None:
    y = torch.zeros(3, dtype=F64)
    draws = {"mu": np.array([[1.0, -2.0, 0.5, -0.1]])}
    tree = from_pyro(branching, draws, args=(y,), prior=5)
    np.testing.assert_allclose(
        tree.log_likelihood.y[0, :, 0], stats.norm.logpdf(0.0, np.abs(draws["mu"][0])), rtol=1e-6
    )
    assert tree.attrs["evaluation"].startswith(
        "one by one: RuntimeError: vmap: It looks like you're attempting"
    )
    with pytest.raises(ValueError, match="vectorize=True, but the program does not vectorise"):
        from_pyro(branching, draws, args=(y,), vectorize=True, **QUIET)
    tree = from_pyro(counting, draws, args=(y,), **QUIET)
    assert "differs between a run of all draws and runs one by one" in tree.attrs["evaluation"]


@pytest.mark.parametrize("vectorize", [True, False])
def test_at_once_and_one_by_one_are_the_same_law(vectorize: bool) -> None:
    tree = from_pyro(radon, args=radon_data(), prior=400, vectorize=vectorize)
    prior = tree.prior
    assert stats.kstest(prior.mu.values.ravel(), stats.norm(0, 2).cdf).pvalue > 1e-3
    assert stats.kstest(prior.noise.values.ravel(), stats.expon().cdf).pvalue > 1e-3
    standard = (prior["level"] - prior.mu) / prior.spread
    assert stats.kstest(standard.values.ravel(), stats.norm.cdf).pvalue > 1e-3
    county, floor, _ = radon_data()
    mean = prior["level"].values[..., county] + prior.slope.values[..., None] * floor.numpy()
    residual = (tree.prior_predictive.log_radon.values - mean) / prior.noise.values[..., None]
    assert stats.kstest(residual.ravel()[::7], stats.norm.cdf).pvalue > 1e-3, (
        "blocks of rows share their parameters"
    )


ONES = torch.ones(2, dtype=F64)


@pytest.mark.parametrize(
    ("law", "reference"),
    [
        (dist.Normal(ONES, ONES), stats.norm(1, 1)),
        (dist.HalfNormal(ONES), stats.halfnorm()),
        (dist.HalfCauchy(ONES), stats.halfcauchy()),
        (dist.Cauchy(ONES, 2 * ONES), stats.cauchy(1, 2)),
        (dist.StudentT(4 * ONES, ONES, ONES), stats.t(4, 1, 1)),
        (dist.Exponential(3 * ONES), stats.expon(scale=1 / 3)),
        (dist.Laplace(ONES, ONES), stats.laplace(1, 1)),
        (dist.Uniform(-ONES, ONES), stats.uniform(-1, 2)),
        (dist.LogNormal(0 * ONES, ONES), stats.lognorm(1)),
        (dist.Gamma(2 * ONES, 3 * ONES), stats.gamma(2, scale=1 / 3)),
        (dist.InverseGamma(2 * ONES, ONES), stats.invgamma(2)),
        (dist.Weibull(ONES, 2 * ONES), stats.weibull_min(2)),
        (dist.Gumbel(ONES, ONES), stats.gumbel_r(1, 1)),
        (dist.Beta(2 * ONES, ONES), stats.beta(2, 1)),  # no vectorised sampler: one by one
    ],
    ids=lambda law: type(law).__name__ if isinstance(law, dist.TorchDistribution) else "",
)
def test_draws_at_once_follow_their_law(law: Any, reference: Any) -> None:
    def model() -> None:
        pyro.sample("x", law.to_event(1))

    tree = from_pyro(model, prior=1500)
    x = tree.prior.x.values[0]
    assert stats.kstest(x.ravel(), reference.cdf).pvalue > 1e-4
    assert abs(stats.spearmanr(x[:-1, 0], x[1:, 0]).statistic) < 0.1, "draws are independent"
    assert abs(stats.spearmanr(x[:, 0], x[:, 1]).statistic) < 0.1, "and so are elements"
    assert tree.attrs["evaluation"] == "vectorised" or isinstance(law, dist.Beta)
