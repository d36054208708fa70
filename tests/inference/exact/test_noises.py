"""Exact inference with unknown noise: against integrals by SciPy, Student's t in closed form, and a search of the evidence."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor

import bll_pyro as bll
from bll_pyro.gaussian import OutputMixture
from bll_pyro.inference.exact.noise_mixture import NoiseMixturePosterior
from bll_pyro.inference.exact.noises import RootInverseGamma
from bll_pyro.scope import isolated

Numbers = NDArray[np.float64]
TREATMENTS = [bll.noises.Integrated(), bll.noises.Conjugate(), bll.noises.Maximized()]


def data(
    num_rows: int = 25, num_features: int = 3, num_targets: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": random, "dtype": torch.float64}
    features = torch.randn(num_rows, num_features, **options) + 1
    weights = torch.randn(num_features, num_targets, **options)
    targets = features @ weights + 0.6 * torch.randn(num_rows, num_targets, **options) + 2
    return features, targets[:, 0] if num_targets == 1 else targets


def prior_covariance(features: Tensor, scale: float = 0.9, bias_scale: float = 3.0) -> Numbers:
    """Of the outputs of some rows."""
    return (scale**2 * features @ features.T + bias_scale**2).numpy()


def log_likelihood(covariance: Numbers, targets: Numbers, noise: float) -> float:
    """Of targets with the covariance of their outputs, from its eigenvalues: SciPy refuses a noise near 0."""
    values, vectors = np.linalg.eigh(covariance)
    variances = values + noise**2
    return float(-0.5 * (np.log(2 * np.pi * variances) + (vectors.T @ targets) ** 2 / variances).sum())


def layer_of(noise_scale: Any = None, **options: Any) -> bll.LastLayer:
    prior = options.pop("prior", bll.priors.Normal(scale=0.9))
    likelihood = bll.likelihoods.Gaussian(noise_scale=noise_scale)
    return bll.LastLayer(likelihood, prior, bias_scale=3.0, standardize=False, **options)


@pytest.mark.parametrize(
    ("prior", "density"),
    [
        (None, stats.halfnorm(scale=1.0).pdf),
        (dist.LogNormal(torch.tensor(-1.0), torch.tensor(0.25)), stats.lognorm(s=0.25, scale=np.exp(-1)).pdf),
        (dist.Gamma(torch.tensor(2.0), torch.tensor(4.0)), stats.gamma(2.0, scale=0.25).pdf),
        (dist.Uniform(torch.tensor(0.5), torch.tensor(3.0)), stats.uniform(0.5, 2.5).pdf),
    ],
)
@pytest.mark.parametrize("num_rows", [3, 25])
@pytest.mark.thinned(3)
def test_integrates_the_declared_prior_of_the_noise(prior: Any, density: Any, num_rows: int) -> None:
    features, targets = data(num_rows)
    fit = bll.fit(layer_of(prior), (features, targets), inference=bll.Exact())
    new, y = data(2, seed=1)
    covariance = prior_covariance(torch.cat([features, new]))
    own = covariance[:num_rows, :num_rows]

    def integral(function: Any) -> float:
        def integrand(noise: float) -> float:
            likelihood = np.exp(log_likelihood(own, targets.numpy(), noise))
            return float(likelihood * density(noise) * function(noise, own + noise**2 * np.eye(num_rows)))

        pieces = [1e-12, 0.05, 0.2, 0.5, 0.7, 1.0, 2.0, 3.0, 30.0]
        options = {"epsabs": 0, "epsrel": 1e-10, "limit": 200}
        return sum(integrate.quad(integrand, a, b, **options)[0] for a, b in pairwise(pieces))

    def output_mean(noise: float, own: Numbers) -> float:
        return float(covariance[num_rows, :num_rows] @ np.linalg.solve(own, targets.numpy()))

    def predictive(noise: float, own: Numbers) -> float:
        cross = covariance[num_rows, :num_rows]
        variance = covariance[num_rows, num_rows] - cross @ np.linalg.solve(own, cross) + noise**2
        return float(stats.norm(output_mean(noise, own), np.sqrt(variance)).pdf(float(y[0])))

    evidence = integral(lambda noise, own: 1.0)
    assert fit.log_evidence == pytest.approx(np.log(evidence), abs=1e-8)
    prediction = fit.predict(new)
    assert float(prediction.mean[0]) == pytest.approx(integral(output_mean) / evidence, rel=1e-8)
    assert float(prediction.log_prob(y)[0]) == pytest.approx(
        np.log(integral(predictive) / evidence), rel=1e-8
    )
    noise = integral(lambda noise, own: noise**2) / evidence
    assert float(prediction.aleatoric[0]) == pytest.approx(noise, rel=1e-8)
    draws = fit.posterior.sample(20_000, seed=2)["noise_scale"][0].square()
    assert float(draws.mean()) == pytest.approx(noise, abs=5 * float(draws.std()) / 20_000**0.5)
    points = fit.posterior.noise(1024)["noise_scale"].square()
    assert float(points.mean()) == pytest.approx(noise, rel=0.02)


@pytest.mark.parametrize("num_rows", [3, 25])
def test_conjugate_is_students_t(num_rows: int) -> None:
    """Evidence, predictive and weights of the Normal-inverse-gamma model, all in closed form."""
    features, targets = data(num_rows)
    shape, rate = 1.5, 0.4
    noise = bll.noises.Conjugate(shape=shape, rate=rate)
    fit = bll.fit(layer_of(), (features, targets), inference=bll.Exact(noise=noise))
    new, y = data(4, seed=1)
    whole = prior_covariance(torch.cat([features, new])) + np.eye(num_rows + 4)
    own, cross = whole[:num_rows, :num_rows], whole[num_rows:, :num_rows]
    evidence = stats.multivariate_t(None, rate / shape * own, df=2 * shape).logpdf(targets.numpy())
    assert fit.log_evidence == pytest.approx(evidence, abs=1e-8)
    shape_after = shape + num_rows / 2
    rate_after = rate + 0.5 * targets.numpy() @ np.linalg.solve(own, targets.numpy())
    mean = cross @ np.linalg.solve(own, targets.numpy())
    spread = np.diag(whole[num_rows:, num_rows:] - cross @ np.linalg.solve(own, cross.T))
    students = stats.t(2 * shape_after, mean, np.sqrt(rate_after / shape_after * spread))
    prediction = fit.predict(new)
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(prediction.total, students.var(), rtol=1e-8)
    np.testing.assert_allclose(prediction.log_prob(y), students.logpdf(y.numpy()), rtol=1e-8)
    np.testing.assert_allclose(prediction.cdf(y), students.cdf(y.numpy()), rtol=1e-7)
    for q in (0.001, 0.05, 0.5, 0.9):
        np.testing.assert_allclose(prediction.quantile(q), students.ppf(q), rtol=1e-7, atol=1e-7)
    values = prediction.sample(20_000, seed=3).numpy()
    for row in range(4):
        one = stats.t(2 * shape_after, mean[row], np.sqrt(rate_after / shape_after * spread[row]))
        assert stats.kstest(values[:, row], one.cdf).pvalue > 1e-4
    squared = fit.posterior.sample(20_000, seed=4)["noise_scale"][0].square().numpy()
    assert stats.kstest(squared, stats.invgamma(shape_after, scale=rate_after).cdf).pvalue > 1e-4


def test_prior_of_the_conjugate_noise() -> None:
    prior = RootInverseGamma(2.5, 0.7).expand((2,))
    with isolated(1):
        draws = prior.sample((10_000,))
    assert draws.shape == (10_000, 2)
    reference = stats.invgamma(2.5, scale=0.7)
    assert stats.kstest(draws[:, 1].square().numpy(), reference.cdf).pvalue > 1e-4
    noise = np.array([0.2, 1.0, 4.0])
    np.testing.assert_allclose(
        prior.log_prob(torch.as_tensor(noise)), reference.logpdf(noise**2) + np.log(2 * noise)
    )


@pytest.mark.parametrize("treatment", TREATMENTS[:2])
@pytest.mark.parametrize("bias", [True, False])
def test_density_of_draws(treatment: bll.noises.Integrated, bias: bool) -> None:
    """``log q = log p(y | W, s) + log p(W | s) + log p(s) - log p(y)``, term by term from SciPy."""
    features, targets = data(num_targets=2)
    layer = layer_of(bias=bias)
    fit = bll.fit(layer, (features, targets), inference=bll.Exact(noise=treatment))
    draws = fit.posterior.sample(5, seed=1)
    found = fit.posterior.log_prob(draws)
    assert found.shape == (1, 5)
    relative = isinstance(treatment, bll.noises.Conjugate)
    for s in range(5):
        weight, noise = draws["weight"][0, s], draws["noise_scale"][0, s].numpy()
        outputs = features @ weight.T + (draws["bias"][0, s] if bias else 0.0)
        factor = noise if relative else np.ones(2)
        prior = {"weight": stats.norm(0, 0.9 * factor[:, None]).logpdf(weight.numpy()).sum()}
        if bias:
            prior["bias"] = stats.norm(0, 3.0 * factor).logpdf(draws["bias"][0, s].numpy()).sum()
        squared = stats.invgamma(1.0, scale=0.1).logpdf(noise**2) + np.log(2 * noise)
        prior["noise_scale"] = squared.sum() if relative else stats.halfnorm().logpdf(noise).sum()
        for name, value in fit.posterior.log_prior(draws).items():
            assert float(value[0, s]) == pytest.approx(prior[name], rel=1e-9)
        total = stats.norm(outputs.numpy(), noise).logpdf(targets.numpy()).sum() + sum(prior.values())
        assert float(found[0, s]) == pytest.approx(total - fit.log_evidence, abs=1e-8)


def test_weights_given_the_noise_have_the_moments_of_the_outputs() -> None:
    """Draws of the weights and the mixture over outputs are two ways to the same distribution."""
    features, targets = data(num_rows=8, num_targets=2)
    fit = bll.fit(layer_of(), (features, targets), inference=bll.Exact())
    new, num_draws = data(3, seed=1)[0], 20_000
    outputs = fit.posterior.outputs(new)
    assert isinstance(outputs, OutputMixture)
    by_draws = fit.posterior.draw_outputs(fit.posterior.sample(num_draws, seed=1), new)
    error = (outputs.variance / num_draws).sqrt()
    assert bool(((by_draws.mean(0) - outputs.mean).abs() < 5 * error).all())
    torch.testing.assert_close(by_draws.var(0), outputs.variance, rtol=0.06, atol=0.0)
    points = outputs.draws(4096)
    torch.testing.assert_close(points.mean(0), outputs.mean, rtol=0.01, atol=0.01)
    torch.testing.assert_close(points.var(0), outputs.variance, rtol=0.02, atol=0.0)
    torch.testing.assert_close(outputs.rows(slice(1, 3)).mean, outputs.mean[1:])
    joined = OutputMixture.concat([outputs.rows(slice(0, 1)), outputs.rows(slice(1, 3))])
    torch.testing.assert_close(joined.variance, outputs.variance)


@pytest.mark.parametrize("per_output", [True, False])
def test_maximized_noise_and_scale_are_the_highest_point_of_the_evidence(per_output: bool) -> None:
    features, targets = data(40, 6, num_targets=2)
    layer = layer_of(prior=bll.priors.Normal(per_output=per_output))
    fit = bll.fit(layer, (features, targets), inference=bll.Exact(noise=bll.noises.Maximized()))
    noise, scales = fit.posterior.learned["noise_scale"], fit.posterior.learned["tau"].expand(2)

    def evidence(noise_factor: float, scale_factor: float) -> float:
        total = 0.0
        for k in range(2):
            own = prior_covariance(features, float(scales[k]) * scale_factor)
            own = own + (float(noise[k]) * noise_factor) ** 2 * np.eye(40)
            total += float(stats.multivariate_normal(None, own).logpdf(targets[:, k].numpy()))
        return total

    factors = (0.2, 0.98, 1.0, 1.02, 5.0)
    values = {(a, b): evidence(a, b) for a in factors for b in factors}
    assert max(values, key=lambda pair: values[pair]) == (1.0, 1.0)
    assert fit.log_evidence == pytest.approx(values[1.0, 1.0], abs=1e-7)
    # Bishop (3.95): noise^2 = expected squared residuals / N
    outputs = fit.posterior.outputs(features)
    residuals = (targets - outputs.mean).square() + outputs.variance
    torch.testing.assert_close(noise.square(), residuals.mean(0), rtol=1e-8, atol=0.0)
    assert fit.predict(features).aleatoric[0, 1] == pytest.approx(float(noise[1]) ** 2)


def test_more_features_than_rows() -> None:
    """The evidence is finite down to no noise at all; the integral over the noise sees both ends."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(12, 30, generator=random, dtype=torch.float64)
    targets = features[:, 0] + 0.3 * torch.randn(12, generator=random, dtype=torch.float64)
    fit = bll.fit(layer_of(), (features, targets), inference=bll.Exact())
    covariance = prior_covariance(features)

    def integrand(log_noise: float) -> float:
        noise = np.exp(log_noise)
        log_density = log_likelihood(covariance, targets.numpy(), noise)
        return float(np.exp(log_density) * stats.halfnorm().pdf(noise) * noise)

    expected = sum(
        integrate.quad(integrand, a, b, epsrel=1e-10, epsabs=0)[0] for a, b in ((-30, -5), (-5, 0), (0, 4))
    )
    assert fit.log_evidence == pytest.approx(np.log(expected), abs=1e-7)


@pytest.mark.filterwarnings("ignore:.*show no noise")
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_a_perfect_fit_stays_finite(treatment: bll.noises.Integrated) -> None:
    features, _ = data(50, 4)
    targets = features @ torch.tensor([1.0, 2.0, 0.0, -1.0]).double() + 3
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (features, targets), inference=bll.Exact(noise=treatment)
    )
    assert np.isfinite(fit.log_evidence)
    prediction = fit.predict(features)
    torch.testing.assert_close(prediction.mean, targets, rtol=0.0, atol=1e-2)
    assert fit.trace.converged == isinstance(treatment, bll.noises.Conjugate)  # which has a prior of its own


@pytest.mark.parametrize("treatment", [TREATMENTS[0], TREATMENTS[2]])
def test_targets_without_noise_are_named(treatment: bll.noises.Integrated) -> None:
    features, _ = data(50, 4)
    targets = 2.0 * features[:, 0]
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    with pytest.warns(RuntimeWarning, match=r"targets \[0\] show no noise: look for copies"):
        fit = bll.fit(layer, (features, targets), inference=bll.Exact(noise=treatment))
    torch.testing.assert_close(fit.predict(features).mean, targets, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.thinned(3)
def test_contract(treatment: bll.noises.Integrated, num_targets: int, tmp_path: Path) -> None:
    """Predict, decompose, save and load, isolation: like every other posterior, with standardised float32 rows."""
    features, targets = data(60, num_targets=num_targets)
    features, targets = features.float(), targets.float()
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    fit = bll.fit(layer, (features, targets), inference=bll.Exact(noise=treatment))
    prediction = fit.predict(features)
    assert prediction.mean.shape == targets.shape and prediction.mean.dtype == torch.float32
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)
    lower, upper = prediction.interval(0.9)
    assert 0.8 < float(((targets > lower) & (targets < upper)).float().mean()) <= 1
    draws = prediction.sample(2000)
    torch.testing.assert_close(draws.std(0), prediction.scale, rtol=0.15, atol=0.0)
    assert prediction.log_prob(targets).shape == (60,)
    assert bll.declaration.from_plain(bll.declaration.to_plain(fit.inference, {}), {}) == fit.inference
    stats_of_draws = fit.to_datatree(features, targets, num_draws=20)["sample_stats"]
    # p(y, all sites) / q(all sites) is the evidence, at every draw, where q is the posterior
    np.testing.assert_allclose(stats_of_draws["log_p"] - stats_of_draws["log_q"], fit.log_evidence, atol=1e-3)
    fit.save(tmp_path)
    again = bll.load(tmp_path)
    assert torch.equal(again.predict(features).total, prediction.total)
    assert again.log_evidence == fit.log_evidence and again.inference == fit.inference
    one, other = fit.posterior.sample(7, seed=3), again.posterior.sample(7, seed=3)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert isinstance(fit.posterior, NoiseMixturePosterior) != isinstance(treatment, bll.noises.Maximized)


@pytest.mark.parametrize(
    ("noise_scale", "treatment", "pattern"),
    [
        (0.3, bll.noises.Maximized(), r"an unknown noise scale, got Gaussian\(noise_scale=0.3\)"),
        (dist.HalfNormal(torch.tensor(1.0)), bll.noises.Conjugate(), "without a prior of the noise"),
        (dist.Normal(torch.tensor(0.0), torch.tensor(1.0)), bll.noises.Integrated(), "over positive numbers"),
    ],
)
def test_says_what_does_not_go_together(
    noise_scale: Any, treatment: bll.noises.Integrated, pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern):
        bll.fit(layer_of(noise_scale), data(), inference=bll.Exact(noise=treatment))


def test_bad_declarations() -> None:
    with pytest.raises(ValueError, match=r"Conjugate\(rate=...\): expected a positive number, got 0"):
        bll.noises.Conjugate(rate=0.0)
    with pytest.raises(TypeError, match=r"bll\.noises\.Integrated\(\), got 'integrated'"):
        bll.Exact(noise="integrated")  # type: ignore[arg-type]
