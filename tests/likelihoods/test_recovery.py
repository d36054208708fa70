"""Simulated data of every kind: parameters lie in their posterior intervals as often as these say.

Many small fits by Laplace's approximation with the whole covariance, which at these sizes is close to exact; the number of
times that an 80 percent interval holds the truth lies within binomial bounds, for every parameter.
"""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.scope import generator

lk = bll.likelihoods
LAPLACE = bll.Laplace(curvature=bll.curvatures.Full())
NUM_FITS, NUM_ROWS, PROB = 40, 250, 0.8
WEIGHT = torch.tensor([0.7, -0.5], dtype=torch.float64)
BIAS = 0.3
CUTPOINTS = torch.tensor([-1.0, 0.6, 1.8], dtype=torch.float64)


def signal(features: Tensor) -> Tensor:
    return features @ WEIGHT + BIAS


def normal(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, dtype=like.dtype)


def gaussian(h: Tensor, random: torch.Generator) -> Tensor:
    return signal(h) + 0.5 * normal(h[:, 0], random)


def heteroscedastic(h: Tensor, random: torch.Generator) -> Tensor:
    return signal(h) + (-0.5 + 0.4 * h[:, 0] + 0.2 * h[:, 1]).exp() * normal(h[:, 0], random)


def outliers(h: Tensor, random: torch.Generator) -> Tensor:
    """Student-t with 4 degrees of freedom: a normal over the root of a chi-square."""
    square = normal(h[:, :1].expand(-1, 4), random).square().sum(-1) / 4
    return signal(h) + 0.5 * normal(h[:, 0], random) / square.sqrt()


def two_tied(h: Tensor, random: torch.Generator) -> Tensor:
    """Noise scales 0.5 and 0.8, correlation 0.6."""
    first, second = normal(h[:, 0], random), normal(h[:, 0], random)
    return torch.stack([signal(h) + 0.5 * first, -signal(h) + 0.8 * (0.6 * first + 0.8 * second)], 1)


def poisson(h: Tensor, random: torch.Generator) -> Tensor:
    return torch.poisson(signal(h).exp(), random)


def negative_binomial(h: Tensor, random: torch.Generator) -> Tensor:
    """Poisson with a gamma rate of concentration 2: the mean of two exponentials."""
    uniform = torch.rand(len(h), 2, generator=random, dtype=h.dtype)
    return torch.poisson(signal(h).exp() * -uniform.log().mean(-1), random)


def logistic(h: Tensor, random: torch.Generator) -> Tensor:
    return torch.logit(torch.rand(len(h), generator=random, dtype=h.dtype))


def ordinal(h: Tensor, random: torch.Generator) -> Tensor:
    return torch.bucketize(signal(h) - BIAS + logistic(h, random), CUTPOINTS)


def multilabel(h: Tensor, random: torch.Generator) -> Tensor:
    return torch.stack([signal(h) > logistic(h, random), -signal(h) > logistic(h, random)], 1).long()


SINGLE = {"weight": WEIGHT[None], "bias": torch.tensor([BIAS], dtype=torch.float64)}
CASES: list[tuple[lk.Likelihood, Callable[[Tensor, torch.Generator], Tensor], dict[str, Tensor]]] = [
    (lk.Gaussian(), gaussian, SINGLE | {"noise_scale": torch.tensor(0.5)}),
    (
        lk.HeteroscedasticGaussian(),
        heteroscedastic,
        {
            "weight": torch.stack([WEIGHT, torch.tensor([0.4, 0.2]).double()]),
            "bias": torch.tensor([BIAS, -0.5]),
        },
    ),
    (
        lk.MultivariateGaussian(),
        two_tied,
        {
            "weight": torch.stack([WEIGHT, -WEIGHT]),
            "noise_scale": torch.tensor([0.5, 0.8]),
            "partial_correlation": torch.tensor([0.6]),
        },
    ),
    (lk.StudentT(df=4.0), outliers, SINGLE | {"noise_scale": torch.tensor(0.5)}),
    (lk.Poisson(), poisson, SINGLE),
    (lk.NegativeBinomial(), negative_binomial, SINGLE | {"concentration": torch.tensor(2.0)}),
    (lk.Ordinal(4), ordinal, {"weight": WEIGHT[None], "cutpoints": CUTPOINTS}),
    (
        lk.Bernoulli(),
        multilabel,
        {"weight": torch.stack([WEIGHT, -WEIGHT]), "bias": torch.tensor([BIAS, -BIAS])},
    ),
]


@pytest.mark.slow
@pytest.mark.unchecked  # run-time checks of annotations take ten times as long as these fits
@pytest.mark.parametrize(("likelihood", "simulate", "truth"), CASES, ids=[c[1].__name__ for c in CASES])
@pytest.mark.thinned(4)
def test_parameters_lie_in_their_intervals(
    likelihood: lk.Likelihood,
    simulate: Callable[[Tensor, torch.Generator], Tensor],
    truth: dict[str, Tensor],
) -> None:
    # the cutpoints of ordered classes take the bias' place
    bias = not isinstance(likelihood, lk.Ordinal)
    layer = bll.LastLayer(likelihood, bll.priors.Normal(2.0), bias=bias, standardize=False)
    held = {name: torch.zeros(value.shape) for name, value in truth.items()}
    num_fits = NUM_FITS if bias else NUM_FITS // 2  # three cutpoints make a fit slower
    for seed in range(num_fits):
        random = generator(seed)
        features = torch.randn(NUM_ROWS, 2, generator=random, dtype=torch.float64)
        fit = bll.fit(layer, (features, simulate(features, random)), inference=LAPLACE, seed=seed)
        draws = fit.posterior.sample(1000, seed)
        for name, value in truth.items():
            sites = draws[name][0].double()
            low, high = sites.quantile((1 - PROB) / 2, 0), sites.quantile((1 + PROB) / 2, 0)
            held[name] += ((low <= value) & (value <= high)).float()
    num_numbers = sum(value.numel() for value in truth.values())
    least, most = scipy.stats.binom.ppf([5e-4 / num_numbers, 1 - 5e-4 / num_numbers], num_fits, PROB)
    for name, counts in held.items():
        assert bool(((counts >= least) & (counts <= most)).all()), (name, counts, least, most)
    total = float(sum(counts.sum() for counts in held.values())) / (num_fits * num_numbers)
    assert abs(total - PROB) < 0.1  # parameters of one fit are not independent; their mean rate


def test_student_t_beats_gaussian_with_outliers() -> None:
    """Five percent of the targets, in training and held-out rows, are ten noise scales off."""
    random = generator(1)
    features = torch.randn(900, 2, generator=random, dtype=torch.float64)
    wild = torch.rand(900, generator=random) < 0.05
    targets = gaussian(features, random) + 5.0 * wild * normal(features[:, 0], random)
    train, test = slice(0, 300), slice(300, 900)
    score = {}
    for likelihood in (lk.Gaussian(), lk.StudentT()):
        fit = bll.fit(bll.LastLayer(likelihood), (features[train], targets[train]), inference=LAPLACE)
        score[type(likelihood).__name__] = fit.predict(features[test]).log_prob(targets[test]).numpy()
        if isinstance(likelihood, lk.StudentT):
            assert float(fit.posterior.sample(500)["df"].median()) < 6
    gain = score["StudentT"] - score["Gaussian"]
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
