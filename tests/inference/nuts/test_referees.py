"""NUTS against referees that share no code with it: importance sampling, and priors that are mixtures of Normals."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

import bll_pyro as bll

pytestmark = [
    pytest.mark.nuts,
    pytest.mark.slow,
    # 300 draws are enough for these comparisons, which take the effective sample size into account
    pytest.mark.filterwarnings("ignore:NUTS. (R-hat|the effective):RuntimeWarning"),
]
NUTS = bll.NUTS(num_warmup=120, num_samples=150, num_chains=2, num_processes=1)
Array = NDArray[np.float64]


def assert_agrees(
    fit: bll.Fit, name: str, values: Array, mean: Array, scale: Array, exactness: float
) -> None:
    """Means and scales of draws ``[S, ...]`` within five Monte-Carlo errors, and those of the referee, of the expected."""
    ess = fit.trace.statistics["ess"][name].numpy().reshape(mean.shape)
    error = 5 * scale / np.sqrt(ess) + 5 * exactness * scale
    assert (np.abs(values.mean(0) - mean) < error).all()
    # a standard deviation of heavy tails is less well known than sd / sqrt(2 ESS)
    assert (np.abs(np.log(values.std(0) / scale)) < 5 / np.sqrt(ess) + 5 * exactness).all()


def test_logistic_regression() -> None:
    """200 rows, 10 features: brute-force importance sampling from a Student-t around the mode, in NumPy alone."""
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 10)) @ (np.eye(10) + 0.4 * random.normal(size=(10, 10)))
    truth = random.normal(size=10)
    labels = (random.random(200) < 1 / (1 + np.exp(-features @ truth + 0.5))).astype(int)
    prior_scale, bias_scale = 1.5, 10.0

    design = np.column_stack([features, np.ones(200)])
    precision = np.array([prior_scale**-2] * 10 + [bias_scale**-2])
    mode = np.zeros(11)
    for _ in range(50):
        probs = 1 / (1 + np.exp(-design @ mode))
        hessian = (design * (probs * (1 - probs))[:, None]).T @ design + np.diag(precision)
        mode = mode + np.linalg.solve(hessian, design.T @ (labels - probs) - precision * mode)
    proposal = stats.multivariate_t(mode, np.linalg.inv(hessian), df=6, seed=1)
    points = proposal.rvs(100_000)
    outputs = points @ design.T
    log_joint = (outputs * labels - np.logaddexp(0, outputs)).sum(-1) - 0.5 * (precision * points**2).sum(-1)
    log_weights = log_joint - proposal.logpdf(points)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    assert 1 / (weights**2).sum() > 20_000, "the referee itself has many effective draws"
    mean = weights @ points
    scale = np.sqrt(weights @ (points - mean) ** 2)

    layer = bll.LastLayer(
        bll.likelihoods.Bernoulli(), bll.priors.Normal(prior_scale), bias_scale=bias_scale, standardize=False
    )
    fit = bll.fit(layer, (features, labels), inference=NUTS, seed=1)
    draws = {name: value.flatten(0, 1).double().numpy() for name, value in fit.posterior.draws.items()}
    assert fit.trace.statistics["sample_stats"]["diverging"].sum() == 0
    assert_agrees(fit, "weight", draws["weight"][:, 0], mean[:10], scale[:10], 1 / math.sqrt(20_000))
    assert_agrees(fit, "bias", draws["bias"], mean[10:], scale[10:], 1 / math.sqrt(20_000))


def variances(
    name: str, random: np.random.Generator, num: int, num_weights: int
) -> tuple[bll.priors.Prior, Array, Array]:
    """A prior, and the mixture of Normals that it is: variances ``[num, D]`` and one hyper-parameter ``[num]``."""
    shape, one = (num, num_weights), np.ones((num, num_weights))
    match name:
        case "Laplace":  # with standard deviation 1 the variance is exponential with mean 1
            return bll.priors.Laplace(1.0), random.exponential(1.0, shape), one[:, 0]
        case "StudentT":
            square = stats.invgamma(2.0, scale=1.0).rvs(
                shape, random_state=random
            )  # df = 4 and standard deviation 1
            return bll.priors.StudentT(df=4.0, scale=1.0), square, one[:, 0]
        case "HierarchicalNormal":
            tau = np.abs(random.standard_cauchy(num)) / math.sqrt(num_weights)
            return bll.priors.HierarchicalNormal(), tau[:, None] ** 2 * one, tau
        case "HierarchicalNormal per feature":
            tau = np.abs(random.normal(size=shape))
            prior = bll.priors.HierarchicalNormal(dist.HalfNormal(torch.tensor(1.0)), per_feature=True)
            return prior, tau**2, tau[:, 0]
        case "Horseshoe":
            tau, local = 0.3 * np.abs(random.standard_cauchy(num)), np.abs(random.standard_cauchy(shape))
            slab = stats.invgamma(2.0, scale=2.0).rvs(num, random_state=random)[:, None]
            spread = (tau[:, None] * local) ** 2
            return (
                bll.priors.Horseshoe(global_scale=0.3, slab_scale=1.0),
                slab * spread / (slab + spread),
                tau,
            )
        case _:
            prob = random.beta(1.0, 1.0, num)
            relevant = random.random(shape) < prob[:, None]
            return bll.priors.SpikeAndSlab(spike_scale=0.2), np.where(relevant, 1.0, 0.04), prob


HYPER = {"HierarchicalNormal": "tau", "Horseshoe": "tau", "SpikeAndSlab": "slab_prob"}


@pytest.mark.parametrize(
    "name",
    [
        "Laplace",
        "StudentT",
        "HierarchicalNormal",
        "HierarchicalNormal per feature",
        "Horseshoe",
        "SpikeAndSlab",
    ],
)
@pytest.mark.thinned(3)
def test_scale_mixtures(name: str) -> None:
    """Orthogonal features and known noise: given the variances the posterior is in closed form, one weight at a time.

    With ``b = h'y / h'h`` and ``s^2 = noise^2 / h'h``, ``b ~ N(0, v + s^2)`` weighs draws of the variances v from the
    prior, and ``w | v, b`` is Normal with mean ``b v / (v + s^2)`` and variance ``v s^2 / (v + s^2)``.
    """
    random = np.random.default_rng(0)
    features, _ = np.linalg.qr(random.normal(size=(12, 3)))
    estimates, noise = np.array([1.5, 0.3, -0.05]), 0.25
    targets = features @ estimates
    prior, square, hyper = variances(name, random, 500_000, 3)
    total = square + noise**2
    log_weights = -0.5 * (np.log(total) + estimates**2 / total).sum(-1)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    exactness = math.sqrt((weights**2).sum())
    assert exactness < 0.01
    given = estimates * square / total
    mean = weights @ given
    scale = np.sqrt(weights @ (given**2 + square * noise**2 / total) - mean**2)

    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise), prior, bias=False, standardize=False)
    fit = bll.fit(layer, (features, targets), inference=NUTS, seed=2)
    draws = fit.posterior.draws
    assert_agrees(fit, "weight", draws["weight"].flatten(0, 1)[:, 0].double().numpy(), mean, scale, exactness)
    if name in HYPER:
        values = draws[HYPER[name]].flatten().double().numpy()
        # medians, since tau has no variance in the prior
        order = np.argsort(hyper)
        for share in (0.25, 0.5, 0.75):
            quantile = hyper[order][np.searchsorted(np.cumsum(weights[order]), share)]
            ess = float(fit.trace.statistics["ess"][HYPER[name]])
            error = 5 * math.sqrt(share * (1 - share)) * (1 / math.sqrt(ess) + exactness)
            assert float((values < quantile).mean()) == pytest.approx(share, abs=error)
