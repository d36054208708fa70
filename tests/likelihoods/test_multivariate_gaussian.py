"""Correlated noise: its prior, its posterior in closed form, predictions against brute force, and what is refused."""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import yaml
from scipy import stats
from torch import Tensor

import bll_pyro as bll
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.likelihoods.multivariate_gaussian import correlation_factor
from bll_pyro.prediction import QuasiMonteCarlo
from bll_pyro.prediction.values import Mixture, predict_values
from bll_pyro.scope import generator, isolated

lk = bll.likelihoods
FULL = bll.Laplace(curvature=bll.curvatures.Full())
COVARIANCE = torch.tensor([[1.0, 0.5, -0.3], [0.5, 0.8, 0.1], [-0.3, 0.1, 0.4]], dtype=torch.float64)
RANDOM = generator(0)
FEATURES = torch.randn(80, 3, generator=RANDOM, dtype=torch.float64)
WEIGHT = torch.randn(3, 3, generator=RANDOM, dtype=torch.float64)
NOISE = torch.randn(80, 3, generator=RANDOM, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).mT
VALUES = FEATURES @ WEIGHT.mT + NOISE
NEW = torch.randn(6, 3, generator=RANDOM, dtype=torch.float64)


@pytest.fixture(scope="module")
def learned() -> bll.Fit:
    return bll.fit(bll.LastLayer(lk.MultivariateGaussian()), (FEATURES, VALUES), inference=FULL)


@pytest.mark.parametrize("concentration", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_prior_of_the_correlations_is_lkj(size: int, concentration: float) -> None:
    """Pyro's density of the Cholesky factor, times the change of volume by automatic differentiation."""
    prior = lk.MultivariateGaussian(concentration=concentration).sites((size,))["partial_correlation"]
    partial = 1.6 * torch.rand(size * (size - 1) // 2, generator=generator(1), dtype=torch.float64) - 0.8
    below = torch.tril_indices(size, size, -1)
    jacobian = torch.autograd.functional.jacobian(lambda p: correlation_factor(p)[*below], partial)
    expected = dist.LKJCholesky(size, concentration).log_prob(correlation_factor(partial))
    expected = expected + torch.linalg.slogdet(jacobian).logabsdet
    assert float(prior.log_prob(partial)) == pytest.approx(float(expected), abs=1e-5)


def test_partial_correlations_are_those_of_the_matrix() -> None:
    """Of targets 1 and 2 given 0: from the inverse of the correlation matrix."""
    partial = torch.tensor([[0.3, -0.5, 0.7], [0.99999999999, -1.0, 1.0]], dtype=torch.float64)
    factor = correlation_factor(partial)
    correlation = factor @ factor.mT
    torch.testing.assert_close(correlation.diagonal(dim1=-2, dim2=-1), torch.ones(2, 3).double())
    torch.testing.assert_close(correlation[0, 0, 1:], partial[0, :2])
    inverse = torch.linalg.inv(correlation[0])
    assert float(-inverse[1, 2] / (inverse[1, 1] * inverse[2, 2]).sqrt()) == pytest.approx(0.7)
    assert bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())  # at the ends of the range too


def kron(one: Tensor, other: Tensor) -> Tensor:
    return torch.from_numpy(np.kron(one.numpy(), other.numpy()))


def textbook() -> tuple[Tensor, Tensor, float]:
    """Mean ``[12]`` and covariance of all weights (bias last in each output), and the log evidence, known covariance."""
    design = torch.cat([FEATURES, torch.ones(80, 1)], 1).double()
    prior = torch.tensor([0.7] * 3 + [2.0], dtype=torch.float64)
    inverse, eye = torch.linalg.inv(COVARIANCE), torch.eye(80).double()
    precision = kron(inverse, design.mT @ design) + torch.diag(prior.repeat(3) ** -2)
    mean = torch.linalg.solve(precision, (inverse @ VALUES.mT @ design).flatten())
    marginal = kron(eye[:3, :3], design @ torch.diag(prior**2) @ design.mT) + kron(COVARIANCE, eye)
    log_evidence = stats.multivariate_normal(np.zeros(240), marginal.numpy()).logpdf(VALUES.mT.flatten())
    return mean, torch.linalg.inv(precision), float(log_evidence)


@pytest.mark.parametrize("curvature", [bll.curvatures.Full(), bll.curvatures.Kronecker()], ids=repr)
def test_laplace_is_the_textbook_posterior(curvature: bll.curvatures.Curvature) -> None:
    """Both curvatures are exact here: the information is the same for all rows, the prior an outer product."""
    layer = bll.LastLayer(
        lk.MultivariateGaussian(COVARIANCE), bll.priors.Normal(0.7), bias_scale=2.0, standardize=False
    )
    fit = bll.fit(layer, (FEATURES, VALUES), inference=bll.Laplace(curvature))
    mean, covariance, log_evidence = textbook()
    design = torch.cat([NEW, torch.ones(6, 1)], 1).double()
    outputs = fit.posterior.outputs(NEW)
    torch.testing.assert_close(outputs.mean, design @ mean.view(3, 4).mT, rtol=1e-6, atol=1e-8)
    of_rows = torch.stack([kron(torch.eye(3).double(), row) for row in design])
    expected = of_rows @ covariance @ of_rows.mT
    torch.testing.assert_close(outputs.covariance, expected, rtol=1e-6, atol=1e-9)
    assert fit.log_evidence == pytest.approx(log_evidence, rel=1e-9)
    joint = stats.multivariate_normal(cov=(expected[0] + COVARIANCE).numpy(), mean=outputs.mean[0].numpy())
    assert float(fit.predict(NEW).log_prob(VALUES[:6])[0]) == pytest.approx(joint.logpdf(VALUES[0]))


def test_the_elbo_of_full_rank_is_the_log_evidence() -> None:
    layer = bll.LastLayer(
        lk.MultivariateGaussian(COVARIANCE), bll.priors.Normal(0.7), bias_scale=2.0, standardize=False
    )
    fit = bll.fit(layer, (FEATURES, VALUES), inference=bll.SVI(guide=bll.guides.FullRank(), num_epochs=300))
    log_evidence = textbook()[2]
    assert log_evidence - 0.05 < fit.elbo < log_evidence + 1e-6


def test_the_expected_density_is_that_of_each_draw_of_the_noise() -> None:
    likelihood = lk.MultivariateGaussian()
    random = generator(3)
    noise = {
        "noise_scale": torch.rand(5, 1, 3, generator=random, dtype=torch.float64) + 0.5,
        "partial_correlation": torch.rand(5, 1, 3, generator=random, dtype=torch.float64) - 0.5,
    }
    spread = torch.rand(80, 3, generator=random, dtype=torch.float64)
    outputs = OutputGaussian(FEATURES, spread)
    found = likelihood.expected_log_prob(outputs, VALUES, None, **noise)
    for number in range(5):
        covariance = likelihood.noise_covariance(FEATURES, **{k: v[number, 0] for k, v in noise.items()})
        lost = spread.square() @ torch.linalg.inv(covariance).diagonal() / 2
        expected = stats.multivariate_normal(np.zeros(3), covariance.numpy()).logpdf(
            (VALUES - FEATURES).numpy()
        )
        torch.testing.assert_close(found[number], torch.from_numpy(expected) - lost)


def test_the_default_finds_the_covariance_of_two_targets() -> None:
    fit = bll.fit(bll.LastLayer(lk.MultivariateGaussian()), (FEATURES, VALUES[:, :2]))
    residual = VALUES[:, :2] - FEATURES @ WEIGHT[:2].mT
    true = residual.mT @ residual / 80
    found = fit.predict(NEW).aleatoric
    torch.testing.assert_close(found.double().mean(0), true.diagonal(), rtol=0.25, atol=0)
    draws = fit.posterior.sample(500)["partial_correlation"]
    correlation = float(true[0, 1] / (true[0, 0] * true[1, 1]).sqrt())
    assert float(draws.mean()) == pytest.approx(correlation, abs=0.1)


def test_leave_one_out_is_that_of_fits_without_the_row() -> None:
    layer = bll.LastLayer(
        lk.MultivariateGaussian(COVARIANCE), bll.priors.Normal(0.7), bias_scale=2.0, standardize=False
    )
    rows, expected = torch.arange(12), []
    for left in rows:
        others = rows[rows != left]
        fit = bll.fit(layer, (FEATURES[others], VALUES[others]), inference=FULL)
        expected.append(float(fit.predict(FEATURES[left][None]).log_prob(VALUES[left][None])))
    fit = bll.fit(layer, (FEATURES[:12], VALUES[:12]), inference=FULL)
    found = bll.loo(fit, (FEATURES[:12], VALUES[:12])).elpd_i
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_units_of_the_targets_change_nothing(known: bool) -> None:
    """A known covariance is in the user's units; standardised, a fit of other units is the same fit."""
    units, shift = torch.tensor([3.0, 0.1, 50.0], dtype=torch.float64), torch.tensor([7.0, -2.0, 0.0])
    fits = []
    for factor in (torch.ones_like(units), units):
        given = COVARIANCE * torch.outer(factor, factor) if known else None
        layer = bll.LastLayer(lk.MultivariateGaussian(given), bll.priors.Normal(0.7))
        fits.append(bll.fit(layer, (FEATURES, VALUES * factor + shift), inference=FULL))
    first, second = (fit.predict(NEW) for fit in fits)
    torch.testing.assert_close(second.mean, (first.mean - shift) * units + shift, rtol=1e-6, atol=1e-6)
    for name in ("total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name) * units**2, rtol=1e-5, atol=0)
    change = second.log_prob(VALUES[:6] * units + shift) - first.log_prob(VALUES[:6] + shift)
    torch.testing.assert_close(change, -units.log().sum().expand(6), rtol=1e-6, atol=1e-6)


def test_predictions_agree_with_brute_force(learned: bll.Fit) -> None:
    """Draws of weights and noise, then of targets given these: moments, joint density, and the prediction's own draws."""
    num_draws, num_parts = 20_000, 20
    prediction, posterior = learned.predict(NEW), learned.posterior
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)
    draws = posterior.sample(num_draws, seed=3)
    outputs = posterior.draw_outputs(draws, NEW)
    likelihood, frame = posterior.layer.likelihood, posterior.frame
    noise = {name: draws[name][0][:, None] for name in posterior.global_sites.noise_names}
    with isolated(4):
        targets = (
            likelihood.distribution(outputs, **noise).sample() * frame.target_scale + frame.target_center
        )
    scale = frame.target_scale
    covariance = likelihood.noise_covariance(outputs, **noise) * torch.outer(scale, scale)

    def agrees(found: Tensor, values: Tensor, brute: Any) -> None:
        parts = torch.stack([brute(part) for part in values.chunk(num_parts)])
        error = parts.std(0) / math.sqrt(num_parts)
        assert bool(((found - parts.mean(0)).abs() < 5 * error + 0.02 * found.abs()).all())

    agrees(prediction.mean, targets, lambda y: y.mean(0))
    agrees(prediction.total, targets, lambda y: y.var(0))
    agrees(prediction.epistemic, outputs * scale, lambda f: f.var(0))
    variance = covariance.diagonal(dim1=-2, dim2=-1).expand(num_draws, 6, 3)
    agrees(prediction.aleatoric, variance, lambda v: v.mean(0))
    density = (likelihood.log_prob(outputs, frame.targets(VALUES[:6]), **noise) - scale.log().sum()).exp()
    agrees(prediction.log_prob(VALUES[:6]).exp(), density, lambda p: p.mean(0))
    drawn = prediction.sample(num_draws, seed=5)
    between = torch.stack([torch.cov(drawn[:, row].mT) for row in range(6)])
    agrees(between, targets, lambda y: torch.stack([torch.cov(y[:, row].mT) for row in range(6)]))
    assert torch.equal(drawn[:3], prediction.sample(num_draws, seed=5)[:3])


@pytest.mark.parametrize("tied", [True, False])
def test_draws_of_a_row_are_joint_for_independent_noise_too(tied: bool) -> None:
    """Outputs that a guide ties are drawn together: the covariance of targets is that of the outputs, and the noise."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    outputs = OutputGaussian(torch.zeros(1, 2).double(), factor=torch.linalg.cholesky(covariance)[None])
    if not tied:
        covariance, outputs = torch.eye(2).double(), OutputGaussian(outputs.loc, torch.ones(1, 2).double())
    units = torch.zeros(2).double(), torch.ones(2).double()
    mixture = Mixture(outputs, lk.Gaussian((0.3, 0.6)), {}, *units, QuasiMonteCarlo())
    drawn = predict_values(mixture, single=False).sample(20_000, seed=1)[:, 0]
    expected = covariance + torch.diag(torch.tensor([0.09, 0.36])).double()
    torch.testing.assert_close(torch.cov(drawn.mT), expected, rtol=0, atol=5 * 1.4 * 2**0.5 / 20_000**0.5)


def test_tree_and_plain_data(learned: bll.Fit, tmp_path: Any) -> None:
    names = {"output_names": ["a", "b", "c"]}
    tree = learned.to_datatree(FEATURES, VALUES, num_draws=20, **names)
    assert tree["posterior"]["partial_correlation"].dims == ("chain", "draw", "pair")
    assert list(tree["posterior"]["pair"].values) == ["a-b", "a-c", "b-c"]
    assert tree["posterior"]["noise_scale"].dims == ("chain", "draw", "output")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "obs")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "obs", "output")
    for likelihood in (
        lk.MultivariateGaussian(COVARIANCE),
        lk.MultivariateGaussian(noise_scale=dist.LogNormal(0.0, 1.0), concentration=3.0),
    ):
        assert from_plain(yaml.safe_load(yaml.safe_dump(to_plain(likelihood, {}))), {}) == likelihood
    assert lk.MultivariateGaussian(COVARIANCE) == lk.MultivariateGaussian(COVARIANCE.numpy())
    learned.save(tmp_path)
    assert torch.equal(
        bll.load(tmp_path).predict(NEW).log_prob(VALUES[:6]), learned.predict(NEW).log_prob(VALUES[:6])
    )


WRONG = [
    ([[1.0, 0.5], [0.4, 1.0]], r"symmetric matrix, got entries that differ by 0\.1.*\(C \+ C\.T\) / 2"),
    (
        [[1.0, 2.0], [2.0, 1.0]],
        r"positive definite matrix, got one whose smallest eigenvalue is -1.*diagonal",
    ),
    ([[1.0, 1.0], [1.0, 1.0]], r"positive definite"),
    (
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        r"square matrix \[T, T\] for T targets, got shape \[2, 3\].*Gaussian\(",
    ),
    ([1.0, 2.0], r"square matrix.*got shape \[2\]"),
    ([[1.0, math.nan], [math.nan, 1.0]], r"finite numbers"),
    ([[1.0], [2.0, 3.0]], r"square matrix of numbers"),
    ("one", r"square matrix of numbers, got 'one'"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(("covariance", "message"), WRONG)
def test_bad_covariances(covariance: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=r"MultivariateGaussian\(covariance=\.\.\.\): expected " + f"(a )?{message}"
    ):
        lk.MultivariateGaussian(covariance)


def test_what_does_not_go_together() -> None:
    two = bll.LastLayer(lk.MultivariateGaussian([[1.0, 0.5], [0.5, 1.0]]))
    with pytest.raises(ValueError, match=r"expected a matrix \[3, 3\] for 3 targets, got \[2, 2\]"):
        bll.fit(two, (FEATURES, VALUES))
    with pytest.raises(
        ValueError, match=r"Exact: .*independent.*Laplace\(curvature=.*Full.*SVI\(\) or bll\.NUTS\(\)"
    ):
        bll.fit(two, (FEATURES, VALUES[:, :2]), inference=bll.Exact())


@pytest.mark.unchecked
def test_epistemic_falls_like_one_over_n_and_aleatoric_is_the_noise() -> None:
    """From 250 to 4,000 rows epistemic falls by 16, within a factor that two samples' noise may explain."""
    covariance = torch.tensor([[0.5, -0.3], [-0.3, 0.8]], dtype=torch.float64)
    random = generator(5)
    weight = torch.tensor([[0.8, -0.5, 0.0], [0.1, 0.4, -0.7]], dtype=torch.float64)
    new = torch.randn(40, 3, generator=random, dtype=torch.float64)
    predictions = []
    for num_rows in (250, 4000):
        features = torch.randn(num_rows, 3, generator=random, dtype=torch.float64)
        noise = torch.randn(num_rows, 2, generator=random, dtype=torch.float64)
        targets = features @ weight.mT + noise @ torch.linalg.cholesky(covariance).mT
        layer = bll.LastLayer(bll.likelihoods.MultivariateGaussian(), bll.priors.Normal(2.0))
        fit = bll.fit(layer, (features, targets), inference=bll.Laplace(bll.curvatures.Full()))
        predictions.append(fit.predict(new))
    few, many = predictions
    assert 10 < float((few.epistemic / many.epistemic).median()) < 25
    # 4,000 rows: a variance is known to sqrt(2 / 4000), 2.2%
    torch.testing.assert_close(many.aleatoric, covariance.diagonal().expand(40, 2), rtol=4 * 0.022, atol=0)
