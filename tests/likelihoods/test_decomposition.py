"""Total, aleatoric and epistemic of every likelihood: against brute force, and as the data grow.

Brute force draws weights and noise from the posterior, then targets given these, and takes variances or entropies of what
it sees. Fits are by Laplace's approximation, which takes milliseconds here.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.scope import generator, isolated

lk = bll.likelihoods
LAPLACE = bll.Laplace(curvature=bll.curvatures.Full())
CUTPOINTS = torch.tensor([-1.0, 0.3, 1.2], dtype=torch.float64)
NOISE = {"noise_scale": torch.tensor([0.7]), "concentration": torch.tensor([2.5]), "cutpoints": CUTPOINTS}
FAMILY: list[lk.Likelihood] = [
    lk.Bernoulli(),
    lk.Categorical(4),
    lk.Gaussian(),
    lk.HeteroscedasticGaussian(),
    lk.NegativeBinomial(),
    lk.Ordinal(4),
    lk.Poisson(),
    lk.StudentT(df=4.5),
]
NUM_DRAWS, NUM_PARTS = 8000, 20
NEW = 0.7 * torch.randn(40, 3, generator=generator(9), dtype=torch.float64)


def outputs_of(likelihood: lk.Likelihood, features: Tensor) -> Tensor:
    """True outputs ``[N, K]``; of Bernoulli two labels."""
    signal = features @ torch.tensor([0.8, -0.5, 0.0], dtype=torch.float64)
    if isinstance(likelihood, lk.HeteroscedasticGaussian):
        return torch.stack([signal, -0.7 + 0.4 * features[:, 2]], 1)
    if isinstance(likelihood, lk.Categorical):
        return features @ torch.randn(3, 4, generator=generator(2), dtype=torch.float64)
    return torch.stack([signal, -signal], 1) if likelihood.is_binary else signal[:, None]


def fit_to(likelihood: lk.Likelihood, num_rows: int, seed: int = 0) -> bll.Fit:
    features = torch.randn(num_rows, 3, generator=generator(seed), dtype=torch.float64)
    noise = {name: NOISE[name].double() for name in likelihood.sites((1,))}
    with isolated(seed):
        targets = likelihood.distribution(outputs_of(likelihood, features), **noise).sample()
    if not likelihood.is_discrete and not likelihood.is_binary:
        targets = targets[:, 0]
    layer = bll.LastLayer(likelihood, bll.priors.Normal(2.0))
    return bll.fit(layer, (features, targets), inference=LAPLACE)


def given_draws(fit: bll.Fit) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs ``[S, N, K]`` and noise ``[S, 1, ...]`` of draws from the posterior."""
    draws = fit.posterior.sample(NUM_DRAWS, seed=3)
    noise = {name: draws[name][0].view(NUM_DRAWS, 1, -1) for name in fit.posterior.global_sites.noise_names}
    return fit.posterior.draw_outputs(draws, NEW), noise


def agrees(found: Tensor, brute: Any, values: Tensor) -> None:
    """``found`` equals ``brute`` of all draws, up to the error that parts of the draws show."""
    parts = torch.stack([brute(part) for part in values.chunk(NUM_PARTS)])
    error = parts.std(0) / math.sqrt(NUM_PARTS)
    expected = brute(values)
    assert bool(((found - expected).abs() < 5 * error + 0.03 * expected.abs() + 1e-4).all())


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


@pytest.mark.unchecked  # run-time checks of annotations take ten times as long as the fits
@pytest.mark.parametrize("likelihood", FAMILY, ids=lambda m: type(m).__name__)
@pytest.mark.thinned(3)
def test_decomposition_is_that_of_brute_force(likelihood: lk.Likelihood) -> None:
    fit = fit_to(likelihood, 60)
    prediction = fit.predict(NEW)
    assert torch.allclose(prediction.total, prediction.aleatoric + prediction.epistemic, atol=1e-6)
    assert bool((prediction.epistemic >= 0).all())
    outputs, noise = given_draws(fit)
    if likelihood.is_discrete or likelihood.is_binary:
        if likelihood.is_binary:
            yes = torch.sigmoid(outputs)
            probs = torch.stack([1 - yes, yes], -1)
        else:
            probs = likelihood.distribution(outputs, **noise).probs
        agrees(prediction.aleatoric, lambda p: entropy(p).mean(0), probs)
        agrees(prediction.total, lambda p: entropy(p.mean(0)), probs)
        agrees(prediction.epistemic, lambda p: entropy(p.mean(0)) - entropy(p).mean(0), probs)
        with isolated(4):  # targets drawn given the draws occur as often as predicted
            labels = torch.distributions.Categorical(probs, validate_args=False).sample()
        share = torch.nn.functional.one_hot(labels, probs.shape[-1]).double()
        predicted = (
            torch.stack([1 - prediction.probs, prediction.probs], -1)
            if likelihood.is_binary
            else prediction.probs
        )
        agrees(predicted, lambda y: y.mean(0), share)
        return
    scale, center = fit.posterior.frame.target_scale, fit.posterior.frame.target_center
    given = likelihood.marginals(outputs, **noise)
    mean, variance = (given.mean * scale + center)[..., 0], (given.variance * scale**2)[..., 0]
    variance = variance.expand_as(mean)
    agrees(prediction.mean, lambda m: m.mean(0), mean)
    agrees(prediction.aleatoric, lambda v: v.mean(0), variance)
    agrees(prediction.epistemic, lambda m: m.var(0), mean)
    with isolated(4):
        targets = (likelihood.distribution(outputs, **noise).sample() * scale + center)[..., 0]
    agrees(prediction.total, lambda y: y.var(0), targets)


@pytest.mark.unchecked
@pytest.mark.parametrize("likelihood", FAMILY, ids=lambda m: type(m).__name__)
def test_epistemic_falls_like_one_over_n_and_aleatoric_is_the_noise(likelihood: lk.Likelihood) -> None:
    """From 250 to 4,000 rows epistemic falls by 16, within a factor that two samples' noise may explain."""
    few, many = (fit_to(likelihood, num_rows).predict(NEW) for num_rows in (250, 4000))
    ratio = float((few.epistemic / many.epistemic).median())
    assert 10 < ratio < 25
    outputs, noise = outputs_of(likelihood, NEW), {n: NOISE[n].double() for n in likelihood.sites((1,))}
    true = likelihood.distribution(outputs, **noise)
    if likelihood.is_discrete:
        expected = entropy(true.probs)
    elif likelihood.is_binary:
        yes = torch.sigmoid(outputs)
        expected = entropy(torch.stack([1 - yes, yes], -1))
    else:
        expected = true.base_dist.variance[:, 0].expand(len(NEW))
    error = ((many.aleatoric - expected) / expected).abs()
    assert float(error.median()) < 0.1


@pytest.mark.unchecked
@pytest.mark.slow
def test_leave_one_out_of_ordered_classes_with_a_bias() -> None:
    """Against refits without the row; a bias can stand in for the cutpoints, and must not count twice."""
    likelihood = lk.Ordinal(4)
    features = torch.randn(60, 3, generator=generator(0), dtype=torch.float64)
    with isolated(0):
        labels = likelihood.distribution(outputs_of(likelihood, features), cutpoints=CUTPOINTS).sample()
    layer = bll.LastLayer(likelihood, bll.priors.Normal(2.0), standardize=False)
    fit = bll.fit(layer, (features, labels), inference=LAPLACE)
    found = torch.as_tensor(bll.loo(fit, (features, labels)).elpd_i.values)
    whole = fit.predict(features).log_prob(labels)
    for row in (0, 7, int((whole - found).argmax())):
        others = torch.arange(60) != row
        refit = bll.fit(layer, (features[others], labels[others]), inference=LAPLACE)
        expected = float(refit.predict(features[row : row + 1]).log_prob(labels[row : row + 1]))
        assert abs(float(found[row]) - expected) < 0.1 * abs(expected) + 0.02
