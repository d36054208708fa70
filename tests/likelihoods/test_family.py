"""Every likelihood: densities equal SciPy's, expectations equal brute force, and a fit finds what was simulated."""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.likelihoods import Likelihood
from bll_pyro.scope import generator, isolated

lk = bll.likelihoods
CUTPOINTS = torch.tensor([-1.0, 0.3, 1.2], dtype=torch.float64)


def noise_of(likelihood: Likelihood, num_targets: int = 2) -> dict[str, Tensor]:
    values = {"df": 4.5, "noise_scale": 0.7, "concentration": 2.5, "partial_correlation": -0.6}
    return {
        name: CUTPOINTS if name == "cutpoints" else torch.full(site.event_shape, values[name]).double()
        for name, site in likelihood.sites((num_targets,)).items()
    }


def scipy_log_prob(likelihood: Likelihood, f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log density of each row; outputs ``[N, K]``, targets ``[N, 2]`` or labels."""
    match type(likelihood).__name__:
        case "Bernoulli":
            return scipy.stats.bernoulli(1 / (1 + np.exp(-f))).logpmf(y).sum(-1)
        case "Categorical":
            return np.log(scipy.special.softmax(f, -1)[np.arange(len(y)), y])
        case "Gaussian":
            return scipy.stats.norm(f, 0.7).logpdf(y).sum(-1)
        case "HeteroscedasticGaussian":
            return scipy.stats.norm(f[:, :2], np.exp(f[:, 2:])).logpdf(y).sum(-1)
        case "MultivariateGaussian":
            covariance = 0.7**2 * np.array([[1, -0.6], [-0.6, 1]])
            return scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(y - f)
        case "NegativeBinomial":
            mean = np.exp(f)
            return scipy.stats.nbinom(2.5, 2.5 / (2.5 + mean)).logpmf(y).sum(-1)
        case "Poisson":
            return scipy.stats.poisson(np.exp(f)).logpmf(y).sum(-1)
        case "StudentT":
            return scipy.stats.t(4.5, f, 0.7).logpdf(y).sum(-1)
        case "Ordinal":
            edges = np.concatenate([[-np.inf], CUTPOINTS.numpy(), [np.inf]])
            below = scipy.stats.logistic(loc=f).cdf(edges)
            return np.log(np.diff(below)[np.arange(len(y)), y])
    raise AssertionError(likelihood)


FAMILY: list[Likelihood] = [
    lk.Bernoulli(),
    lk.Categorical(4),
    lk.Gaussian(),
    lk.HeteroscedasticGaussian(),
    lk.MultivariateGaussian(),
    lk.MultivariateGaussian([[0.49, -0.294], [-0.294, 0.49]]),
    lk.NegativeBinomial(),
    lk.NegativeBinomial(concentration=2.5),
    lk.Ordinal(4),
    lk.Poisson(),
    lk.StudentT(),
    lk.StudentT(df=4.5),
]


def targets_of(likelihood: Likelihood, num_rows: int) -> Tensor:
    random = generator(4)
    if likelihood.is_discrete:
        return torch.randint(4, (num_rows,), generator=random)
    if likelihood.is_binary:
        return torch.randint(2, (num_rows, 2), generator=random).double()
    if likelihood.is_count:
        return torch.randint(6, (num_rows, 2), generator=random).double()
    return torch.randn(num_rows, 2, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("likelihood", FAMILY, ids=repr)
def test_log_prob_equals_scipy(likelihood: Likelihood) -> None:
    num_outputs = likelihood.num_outputs(() if likelihood.is_discrete else (2,))
    outputs = torch.randn(50, num_outputs, generator=generator(3), dtype=torch.float64)
    targets, noise = targets_of(likelihood, 50), noise_of(likelihood)
    expected = torch.as_tensor(scipy_log_prob(likelihood, outputs.numpy(), targets.numpy()))
    checked = likelihood.check_targets(targets)
    assert torch.allclose(likelihood.log_prob(outputs, checked, **noise), expected, atol=1e-10)
    assert torch.allclose(likelihood.distribution(outputs, **noise).log_prob(checked), expected, atol=1e-10)


@pytest.mark.parametrize("likelihood", FAMILY, ids=repr)
@pytest.mark.thinned(5)
def test_expectation_and_curvature(likelihood: Likelihood) -> None:
    """``expected_log_prob`` has the mean of brute force; ``output_curvature`` is the mean of negative Hessians."""
    num_outputs = likelihood.num_outputs(() if likelihood.is_discrete else (2,))
    random = generator(5)
    loc = 0.5 * torch.randn(6, num_outputs, generator=random, dtype=torch.float64)
    scale = 0.2 + 0.3 * torch.rand(6, num_outputs, generator=random, dtype=torch.float64)
    noise, targets = noise_of(likelihood), likelihood.check_targets(targets_of(likelihood, 6))
    outputs = OutputGaussian(loc, scale)
    num_draws = 40_000
    draws = loc + scale * torch.randn(num_draws, *loc.shape, generator=random, dtype=torch.float64)
    brute = likelihood.log_prob(draws, targets, **noise)
    error = brute.std(0) / math.sqrt(num_draws)
    repeats = 4000
    found = torch.stack(
        [likelihood.expected_log_prob(outputs, targets, random, **noise) for _ in range(repeats)]
    )
    spread = (found.var(0) / repeats + error.square()).sqrt() + 1e-12
    assert bool(((found.mean(0) - brute.mean(0)).abs() < 5 * spread).all())
    # simulated targets at fixed outputs: the Fisher information is the mean square of the score
    curvature = likelihood.output_curvature(loc, **noise)
    with isolated(0):
        shared = loc[:1].expand(60_000, -1)
        simulated = likelihood.distribution(shared, **noise).sample()
    point = shared.clone().requires_grad_()
    score = torch.autograd.grad(likelihood.log_prob(point, simulated, **noise).sum(), point)[0]
    information = score.square()
    tolerance = 5 * information.std(0) / math.sqrt(len(score))
    assert bool(((information.mean(0) - curvature[0]).abs() < tolerance).all())


@pytest.mark.parametrize("likelihood", [m for m in FAMILY if not isinstance(m, lk.Ordinal)], ids=repr)
def test_expected_derivatives_equal_automatic_ones(likelihood: Likelihood) -> None:
    num_outputs = likelihood.num_outputs(() if likelihood.is_discrete else (2,))
    draws = torch.randn(3, 5, num_outputs, generator=generator(6), dtype=torch.float64)
    targets, noise = likelihood.check_targets(targets_of(likelihood, 5)), noise_of(likelihood)
    shaped = {name: value.expand(3, 1, *value.shape) for name, value in noise.items()}
    gradient, curvature = likelihood.expected_derivatives(draws, targets, **shaped)
    base_gradient, base_curvature = Likelihood.expected_derivatives(likelihood, draws, targets, **shaped)
    assert torch.allclose(gradient, base_gradient, atol=1e-10)
    assert torch.allclose(curvature, base_curvature, atol=1e-10)


def simulate(likelihood: Likelihood, num_rows: int) -> tuple[Tensor, Tensor]:
    """Features ``[N, 3]`` and targets ``[N]`` of known weights; where targets are tied two of them."""
    random = generator(7)
    features = torch.randn(num_rows, 3, generator=random, dtype=torch.float64)
    signal = features @ torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    num_targets = 1 if likelihood.independent_targets else 2
    given = noise_of(likelihood, num_targets)
    outputs = torch.stack([signal, -signal], 1)[:, :num_targets]
    if isinstance(likelihood, lk.HeteroscedasticGaussian):
        outputs = torch.stack([signal, -0.7 + 0.5 * features[:, 2]], 1)
    if isinstance(likelihood, lk.Categorical):
        outputs = features @ torch.randn(3, 4, generator=random, dtype=torch.float64)
    with isolated(8):
        targets = likelihood.distribution(outputs, **given).sample()
    return features, targets if targets.dim() == 1 or num_targets == 2 else targets[:, 0]


@pytest.mark.parametrize("likelihood", FAMILY, ids=repr)
@pytest.mark.thinned(5)
@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
def test_variational_fits_of_every_likelihood(likelihood: Likelihood) -> None:
    """Uncertainty adds up, and the fit beats one that knows no features."""
    layer = bll.LastLayer(likelihood=likelihood, prior=bll.priors.Normal(3.0), standardize=False)
    features, targets = simulate(likelihood, 200)
    fit = bll.fit(layer, (features, targets), inference=bll.SVI(num_epochs=60))
    blind = bll.fit(layer, (torch.zeros_like(features), targets), inference=bll.SVI(num_epochs=60))
    prediction = fit.predict(features)
    assert torch.allclose(prediction.total, prediction.aleatoric + prediction.epistemic, atol=1e-6)
    assert bool((prediction.epistemic >= 0).all())
    gain = prediction.log_prob(targets) - blind.predict(torch.zeros_like(features)).log_prob(targets)
    assert float(gain.mean()) > 0.03


@pytest.mark.parametrize("likelihood", [lk.Poisson(), lk.NegativeBinomial(), lk.StudentT()], ids=repr)
@pytest.mark.thinned(4)
@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
def test_predictive_of_values_is_the_mixture(likelihood: Likelihood) -> None:
    """Quantiles, distribution function, mean and variance agree with draws of the predictive."""
    layer = bll.LastLayer(likelihood=likelihood, prior=bll.priors.Normal(2.0))
    fit = bll.fit(layer, simulate(likelihood, 150), inference=bll.SVI(num_epochs=200))
    new = torch.randn(4, 3, generator=generator(9), dtype=torch.float64)
    prediction, num_draws = fit.predict(new), 20_000
    draws = prediction.sample(num_draws, seed=3)
    error = 5 / math.sqrt(num_draws)
    assert bool(
        ((draws.mean(0) - prediction.mean).abs() < error * prediction.scale + 0.02 * prediction.scale).all()
    )
    for q in (0.1, 0.5, 0.9):
        quantile = prediction.quantile(q)
        below = (draws <= quantile + 1e-9).double().mean(0)
        assert torch.allclose(prediction.cdf(quantile), below, atol=0.5 * error + 0.01)
        if likelihood.is_count:
            assert torch.equal(quantile, quantile.round())
            assert bool(
                (prediction.cdf(quantile) >= q - 1e-9).all() and (prediction.cdf(quantile - 1) < q).all()
            )
        else:
            assert torch.allclose(prediction.cdf(quantile), torch.full_like(quantile, q), atol=1e-6)


BAD: list[tuple[Likelihood, list[Any], str]] = [
    (lk.Poisson(), [1.0, -1.0], "whole numbers"),
    (lk.NegativeBinomial(), [1.0, 0.5], "whole numbers"),
    (lk.Bernoulli(), [0.0, 2.0], "labels 0 or 1"),
    (lk.Ordinal(3), [0.0] * 20 + [2.0] * 20, "without gaps"),
    (lk.Ordinal(3), [0.0, 3.0], "from 0 to 2"),
    (lk.StudentT(), [0.0, math.nan], "NaN"),
    (
        lk.Gaussian(),
        [3.0] * 5,
        r"Gaussian: expected targets that vary, got 3.0 in all 5 rows; .*declare known noise",
    ),
    (
        lk.Gaussian(),
        [1e6, 1e6 + 0.0625],
        "expected targets that vary",
    ),  # the same number in float32, up to rounding
    (lk.StudentT(), [3.0] * 5, r"StudentT\(noise_scale=number\)"),
    (lk.HeteroscedasticGaussian(), [0.0] * 5, "expected targets that vary, got 0.0 in all 5 rows"),
    (lk.MultivariateGaussian(), [[1.0, 3.0], [2.0, 3.0]], "got 3.0 in all 2 rows in column 1"),
]


@pytest.mark.parametrize(
    "likelihood",
    [lk.Gaussian(0.5), lk.StudentT(noise_scale=0.5), lk.MultivariateGaussian(((0.25,),)), lk.Poisson()],
)
def test_constant_targets_of_known_noise(likelihood: Likelihood) -> None:
    """There is nothing to learn of the noise, so they are as good as others."""
    targets = torch.full((30,), 3.0)
    features = torch.randn(30, 2, generator=generator(0))
    fit = bll.fit(bll.LastLayer(likelihood), (features, targets), inference=bll.Laplace())
    assert torch.allclose(fit.predict(features).mean, targets.to(fit.predict(features).mean), rtol=0.15)


@pytest.mark.parametrize(("likelihood", "targets", "message"), BAD)
def test_bad_targets(likelihood: Likelihood, targets: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        likelihood.check_training(likelihood.check_targets(torch.tensor(targets)))


def test_rows_to_predict_may_lack_a_class() -> None:
    """A gap says something about training data; a day's new rows may be short of any class."""
    labels, features = torch.arange(60) % 3, torch.randn(60, 2, generator=generator(0))
    with pytest.raises(ValueError, match=r"Ordinal: expected labels without gaps, got none of class \[1\]"):
        bll.fit(bll.LastLayer(lk.Ordinal(3)), (features, torch.where(labels == 1, 0, labels)))
    fit = bll.fit(bll.LastLayer(lk.Ordinal(3)), (features, labels), inference=bll.SVI(num_epochs=1))
    kept = labels != 1
    assert bool(fit.predict(features[kept]).log_prob(labels[kept]).isfinite().all())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "declare",
    [
        lambda: lk.StudentT(df=1.0),
        lambda: lk.StudentT(noise_scale=-1.0),
        lambda: lk.NegativeBinomial(concentration=0.0),
        lambda: lk.Ordinal(2),
        lambda: lk.Categorical(1),
        lambda: lk.Gaussian(noise_scale=0.0),
        lambda: lk.MultivariateGaussian(concentration=0.0),
        lambda: lk.MultivariateGaussian(noise_scale=0.5),
        lambda: lk.MultivariateGaussian([[1.0]], noise_scale=dist.HalfNormal(1.0)),
    ],
)
def test_bad_declarations(declare: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        declare()
