"""``bll.Model`` in the hands of a user: the same ELBO and posterior as the library's, for targets of each allowed shape."""

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import bll_pyro as bll
from bll_pyro import likelihoods
from bll_pyro.scope import generator, isolated

N, D = 40, 3
NUM_DRAWS = 200
LIKELIHOODS: dict[
    str, tuple[likelihoods.Likelihood, int]
] = {  # with the number of targets; 0: one without an axis
    "classes": (likelihoods.Categorical(3), 0),
    "ordered classes": (likelihoods.Ordinal(3), 0),
    "label": (likelihoods.Bernoulli(), 0),
    "labels": (likelihoods.Bernoulli(), 2),
    "number": (likelihoods.Gaussian(), 0),
    "numbers": (likelihoods.Gaussian(), 2),
    "one of a kind": (likelihoods.Gaussian(0.5), 1),
    "tied": (likelihoods.MultivariateGaussian(), 2),
    "noise of its own": (likelihoods.HeteroscedasticGaussian(), 0),
    "outliers": (likelihoods.StudentT(), 0),
    "count": (likelihoods.Poisson(), 0),
    "counts": (likelihoods.NegativeBinomial(), 2),
}


def data(name: str) -> tuple[Tensor, Tensor]:
    likelihood, num_targets = LIKELIHOODS[name]
    random = generator(3)
    features = torch.randn(N, D, generator=random, dtype=torch.float64)
    numbers = features[:, :2] + 0.5 * torch.randn(N, 2, generator=random, dtype=torch.float64)
    if likelihood.is_discrete:
        return features, (numbers[:, 0] > -0.5).long() + (numbers[:, 0] > 0.5).long()
    if likelihood.is_binary:
        numbers = (numbers > 0).double()
    elif likelihood.is_count:
        numbers = numbers.exp().round()
    return features, numbers[:, : max(1, num_targets)] if num_targets else numbers[:, 0]


def layer_of(likelihood: likelihoods.Likelihood) -> bll.LastLayer:
    return bll.LastLayer(likelihood, bll.priors.Normal(1.0), bias_scale=2.0, standardize=False)


def log_weights(fit: bll.Fit, model: bll.Model, features: Tensor, targets: Tensor) -> Tensor:
    """``log p(y, z) - log q(z)`` of draws z of the posterior, ``[S]``, by Pyro's ``Trace_ELBO``."""
    posterior = fit.posterior
    draws = posterior.sample(NUM_DRAWS, seed=5)
    log_q = posterior.log_prob(draws)[0]
    inside = posterior.global_sites.from_user({name: value[0] for name, value in draws.items()})
    loss = Trace_ELBO()
    values = []
    for s in range(NUM_DRAWS):

        def guide(*_: object, s: int = s) -> None:
            density = log_q[s]
            for name, value in inside.items():
                pyro.sample(name, dist.Delta(value[s], density, event_dim=value.dim() - 1))
                density = torch.zeros_like(density)

        values.append(-loss.loss(model, guide, features, targets))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.thinned(4)
def test_pyros_elbo_of_the_posterior_is_that_of_the_fit(name: str) -> None:
    likelihood, _ = LIKELIHOODS[name]
    features, targets = data(name)
    inference = bll.SVI(bll.guides.FullRank(), num_epochs=30)
    with isolated(0, torch.float64):
        fit = bll.fit(layer_of(likelihood), (features, targets), inference=inference)
        model = bll.Model(fit.layer, D, tuple(targets.shape[1:]))
        found = log_weights(fit, model, features, targets)
        # the ELBO that is reported is an average of eight draws for each row, which vary less
        error = math.sqrt(float(found.var()) * (1 / NUM_DRAWS + 1 / 8))
        assert abs(float(found.mean()) - fit.elbo) < 4 * error
        if targets.shape[1:].numel() == 1:
            other = targets[:, None] if targets.dim() == 1 else targets[:, 0]
            again = log_weights(fit, model, features, other)
            torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", ["classes", "label", "labels", "numbers", "count"])
@pytest.mark.parametrize(
    "shape", [lambda n, t: (n, t + 1), lambda n, t: (1, n), lambda n, t: (n, 1, 1), lambda n, t: (n - 1,)]
)
def test_other_shapes_are_refused(name: str, shape: Callable[[int, int], tuple[int, ...]]) -> None:
    likelihood, num_targets = LIKELIHOODS[name]
    features, targets = data(name)
    model = bll.Model(layer_of(likelihood), D, tuple(targets.shape[1:]))
    wrong = torch.zeros(shape(N, max(1, num_targets)), dtype=targets.dtype)
    with (
        isolated(0),
        pytest.raises(ValueError, match=r"Model: expected targets of shape .* for 40 rows, got"),
    ):
        model(features, wrong)


def test_weights_and_exposures_of_a_row_in_both_shapes() -> None:
    features, targets = data("count")
    weight, exposure = 1 + torch.rand(N, generator=generator(1)), 1 + torch.rand(N, generator=generator(2))
    model = bll.Model(layer_of(likelihoods.Poisson()), D)

    def log_prob(*arguments: object) -> float:
        with isolated(0):
            return float(poutine.trace(model).get_trace(features, targets, N, *arguments).log_prob_sum())

    whole = log_prob(weight, exposure)
    assert log_prob(weight[:, None], exposure[:, None]) == whole != log_prob(weight)
    for arguments, name in (((weight[None],), "row_weight"), ((weight, exposure[None]), "exposure")):
        with pytest.raises(ValueError, match=f"Model: expected {name} of shape"):
            log_prob(*arguments)


def test_whole_numbers_and_truth_values_are_targets() -> None:
    for likelihood, targets in (
        (likelihoods.Bernoulli(), torch.arange(N) % 2 == 0),
        (likelihoods.Poisson(), torch.arange(N) % 4),
        (likelihoods.Categorical(3), (torch.arange(N) % 3).double()),
    ):
        model = bll.Model(layer_of(likelihood), D)
        with isolated(0):
            trace = poutine.trace(model).get_trace(torch.zeros(N, D), targets)
            assert torch.isfinite(trace.log_prob_sum())


@pytest.mark.slow
def test_a_users_own_svi_reaches_the_elbo_of_the_library() -> None:
    features, targets = data("label")
    layer = layer_of(likelihoods.Bernoulli())
    fit = bll.fit(layer, (features, targets), inference=bll.SVI(bll.guides.Diagonal(principal_axes=False)))
    with isolated(0, torch.float64):
        model = bll.Model(layer, D)
        guide = AutoNormal(model)
        num_steps = 800
        adam = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / num_steps)})
        svi = SVI(model, guide, adam, Trace_ELBO(num_particles=4))
        for _ in range(num_steps):
            svi.step(features, targets)
        losses = torch.tensor([Trace_ELBO().loss(model, guide, features, targets) for _ in range(300)])
        tree = bll.from_pyro(model, guide=guide, args=(features, targets), num_draws=50, prior=10)
    error = math.sqrt(float(losses.var()) * (1 / 300 + 1 / 8))
    assert abs(-float(losses.mean()) - fit.elbo) < 4 * error
    assert tree.log_likelihood.y.shape == (1, 50, N)


@pytest.mark.nuts
@pytest.mark.slow
def test_a_users_own_nuts_samples_the_exact_posterior() -> None:
    features, targets = data("number")
    layer = layer_of(likelihoods.Gaussian(0.5))
    exact = bll.fit(layer, (features, targets), inference=bll.Exact()).posterior.sample(4000)["weight"][
        0, :, 0
    ]
    with isolated(0, torch.float64):
        model = bll.Model(layer, D)
        mcmc = MCMC(NUTS(model), num_samples=150, warmup_steps=80, disable_progbar=True)
        mcmc.run(features, targets)
        weight = mcmc.get_samples()["weight"][:, 0]
        tree = bll.from_pyro(mcmc=mcmc, prior=10)
    # draws of a chain with a good step are worth at least a quarter of as many independent ones
    error = exact.std(0) * math.sqrt(1 / 4000 + 4 / 150)
    assert bool(((weight.mean(0) - exact.mean(0)).abs() < 4 * error).all())
    outputs = features @ weight.mT + mcmc.get_samples()["bias"][:, 0]
    expected = dist.Normal(outputs.mT, 0.5).log_prob(targets)
    np.testing.assert_allclose(tree.log_likelihood.y[0], expected, rtol=1e-6)
