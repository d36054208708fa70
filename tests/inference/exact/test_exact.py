"""Exact inference with known noise: against the textbook's formulas, a brute-force Gaussian, and SVI's bound."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

import bll_pyro as bll
from bll_pyro.gaussian import CentredDiagonal, Diagonal

NOISE = (0.3, 0.8)


def data(
    num_rows: int = 40, num_features: int = 5, num_targets: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features far from 0 and in different directions, so that the bias and the weights are correlated."""
    random = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": random, "dtype": torch.float64}
    turn = torch.randn(num_features, num_features, **options)
    features = torch.randn(num_rows, num_features, **options) @ turn + 2
    weights = torch.randn(num_features, num_targets, **options)
    targets = features @ weights + 0.5 * torch.randn(num_rows, num_targets, **options) + 3
    return features, targets


def textbook(
    features: Tensor, targets: Tensor, noise: float, scale: float, loc: Tensor, bias_scale: float | None
) -> tuple[Tensor, Tensor, float]:
    """Mean and covariance of the weights (and bias) of one target, and the log evidence by the N x N Gaussian of y."""
    num_rows, num_features = features.shape
    design, center = features, loc
    variance = torch.full((num_features,), scale**2, dtype=torch.float64)
    if bias_scale is not None:
        design = torch.cat([features, torch.ones(num_rows, 1, dtype=torch.float64)], 1)
        center = torch.cat([loc, loc.new_zeros(1)])
        variance = torch.cat([variance, variance.new_tensor([bias_scale**2])])
    covariance = torch.linalg.inv(design.T @ design / noise**2 + torch.diag(1 / variance))
    mean = covariance @ (design.T @ targets / noise**2 + center / variance)
    marginal = design @ torch.diag(variance) @ design.T + noise**2 * torch.eye(num_rows, dtype=torch.float64)
    evidence = multivariate_normal((design @ center).numpy(), marginal.numpy()).logpdf(targets.numpy())
    return mean, covariance, float(evidence)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("num_rows", [40, 4])  # more and fewer rows than features
def test_equals_the_textbook(bias: bool, centred: bool, num_rows: int) -> None:
    features, targets = data(num_rows)
    loc = torch.arange(10, dtype=torch.float64).view(2, 5) / 5 if centred else None
    prior = bll.priors.Normal(scale=0.7, loc=loc)
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(noise_scale=NOISE), prior, bias, bias_scale=4.0, standardize=False
    )
    fit = bll.fit(layer, (features, targets), inference=bll.Exact())
    weights, frame = fit.posterior.latents.weights, fit.posterior.frame
    assert isinstance(weights, CentredDiagonal if bias else Diagonal)
    new = data(6, seed=3)[0]
    outputs = fit.posterior.outputs(new)
    design = torch.cat([new, torch.ones(6, 1, dtype=torch.float64)], 1) if bias else new
    evidence = 0.0
    for k, noise in enumerate(NOISE):
        center = torch.zeros(5, dtype=torch.float64) if loc is None else loc[k]
        mean, covariance, part = textbook(features, targets[:, k], noise, 0.7, center, 4.0 if bias else None)
        evidence += part
        shown = frame.split(weights.loc[k])
        found = torch.cat([shown["weight"], shown["bias"][None]]) if bias else shown["weight"]
        torch.testing.assert_close(found, mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(outputs.mean[:, k], design @ mean, rtol=1e-8, atol=1e-8)
        spread = (design @ covariance * design).sum(-1)
        torch.testing.assert_close(outputs.variance[:, k], spread, rtol=1e-8, atol=1e-10)
    assert fit.log_evidence == pytest.approx(evidence, abs=1e-8 * max(1, abs(evidence)))
    assert fit.trace.converged


@pytest.mark.parametrize("bias", [True, False])
def test_draws_and_density(bias: bool) -> None:
    """Draws have the textbook's moments; their log density is that of SciPy's Gaussian, in the sites' own axes."""
    features, targets = data()
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.5), bll.priors.Normal(0.7), bias, standardize=False)
    fit = bll.fit(layer, (features, targets[:, 0]), inference=bll.Exact())
    mean, covariance, _ = textbook(
        features, targets[:, 0], 0.5, 0.7, torch.zeros(5).double(), 10.0 if bias else None
    )
    num_draws = 20_000
    draws = fit.posterior.sample(num_draws, seed=5)
    flat = draws["weight"][0, :, 0]
    if bias:
        flat = torch.cat([flat, draws["bias"][0]], -1)
    standard_error = covariance.diagonal().sqrt() / num_draws**0.5
    assert bool(((flat.mean(0) - mean).abs() < 5 * standard_error).all())
    variances = covariance.diagonal()
    tolerance = 5 * ((torch.outer(variances, variances) + covariance**2) / num_draws).sqrt()
    assert bool(((torch.cov(flat.T) - covariance).abs() < tolerance).all())
    expected = multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(flat[:50].numpy())
    first = {name: value[:, :50] for name, value in draws.items()}
    np.testing.assert_allclose(fit.posterior.log_prob(first)[0].numpy(), expected, rtol=1e-8)
    weights = fit.posterior.latents.weights
    assert float(weights.entropy()) == pytest.approx(
        multivariate_normal(mean.numpy(), covariance.numpy()).entropy(), rel=1e-9
    )


def test_log_evidence_is_in_the_users_units() -> None:
    """The density of the targets as given: as for raw targets under the prior that standardising amounts to."""
    features, targets = data(num_targets=1)
    y = 50 * targets[:, 0] + 1000
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=20.0), bll.priors.Normal(scale=0.8))
    fit = bll.fit(layer, (features, y), inference=bll.Exact())
    frame = fit.posterior.frame
    standardized, spread = frame.standardized(features), frame.target_scale
    marginal = (
        spread**2 * (0.8**2 * standardized @ standardized.T + 10.0**2) + 20.0**2 * torch.eye(40).double()
    )
    center = np.full(40, float(frame.target_center))
    expected = multivariate_normal(center, marginal.numpy()).logpdf(y.numpy())
    assert fit.log_evidence == pytest.approx(expected, rel=1e-9)
    again = bll.fit(layer, (features, y), inference=bll.SVI(guide=bll.guides.FullRank(), num_epochs=1))
    # the bound is in the same units: in others it would be off by 40 log(spread), far above the evidence
    assert again.elbo < fit.log_evidence
    assert float(again.trace.elbo[-1]) == pytest.approx(again.elbo, abs=20)
    assert 40 * float(spread.log()) > 100


@pytest.mark.thinned(3)
@pytest.mark.slow
def test_no_bound_exceeds_the_evidence_and_full_rank_reaches_it_on_standardized_targets() -> None:
    features, targets = data(60, 4)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=(1.0, 2.0)), bll.priors.Normal(scale=0.7))
    evidence = bll.fit(layer, (features, targets), inference=bll.Exact()).log_evidence
    bounds = {}
    for guide in (bll.guides.FullRank(), bll.guides.Diagonal(principal_axes=False)):
        bounds[guide] = bll.fit(
            layer, (features, targets), inference=bll.SVI(guide=guide, num_epochs=800)
        ).elbo
    assert evidence - 0.05 < bounds[bll.guides.FullRank()] <= evidence + 1e-6
    assert bounds[bll.guides.Diagonal(principal_axes=False)] < evidence - 0.5


@pytest.mark.parametrize("per_output", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_learned_prior_scale_maximises_the_evidence(per_output: bool, bias: bool) -> None:
    features, targets = data(30, 8)
    likelihood = bll.likelihoods.Gaussian(noise_scale=(0.5, 2.0))
    layer = bll.LastLayer(likelihood, bll.priors.Normal(per_output=per_output), bias, standardize=False)
    fit = bll.fit(layer, (features, targets), inference=bll.Exact())
    scales = fit.posterior.learned["tau"].expand(2)
    weights, frame = fit.posterior.latents.weights, fit.posterior.frame
    # MacKay's fixed point: the mean of the second moments of the weights
    moments = (weights.loc.square() + weights.marginal_scale().square())[:, :8].mean(-1)
    expected = moments if per_output else moments.mean().expand(2)
    torch.testing.assert_close(scales.square(), expected, rtol=1e-9, atol=0.0)

    def evidence(k: int, factor: float) -> float:
        scale = float(scales[k]) * factor
        return textbook(
            features, targets[:, k], (0.5, 2.0)[k], scale, torch.zeros(8).double(), 10.0 if bias else None
        )[2]

    total = {
        factor: sum(evidence(k, factor) for k in range(2))
        for factor in (0.01, 0.5, 0.98, 1.0, 1.02, 2.0, 100.0)
    }
    assert max(total, key=lambda factor: total[factor]) == 1.0
    assert fit.log_evidence == pytest.approx(total[1.0], rel=1e-9)
    path = fit.trace.statistics
    assert path["evidence_path"].max() <= fit.log_evidence + 1e-9
    assert path["scale_path"].shape == (len(path["evidence_path"]), 2 if per_output else 1)
    assert frame.rotation is not None


def test_pure_noise_shrinks_the_weights_away() -> None:
    random = torch.Generator().manual_seed(4)
    # residuals that are orthogonal to the features: nothing to learn, whatever the scale
    features = torch.randn(50, 3, generator=random, dtype=torch.float64)
    y = torch.randn(50, generator=random, dtype=torch.float64)
    design = torch.cat([features, torch.ones(50, 1).double()], 1)
    y = y - design @ torch.linalg.lstsq(design, y[:, None]).solution.squeeze(-1)
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    fit = bll.fit(layer, (features, y), inference=bll.Exact())
    assert any("smallest prior scale" in message for message in fit.trace.notes)
    assert fit.predict(features).epistemic.max() < 0.05 * fit.predict(features).total.min()


@pytest.mark.parametrize("inference", [bll.Exact(), bll.Exact(noise=bll.noises.Maximized())])
@pytest.mark.thinned(3)
def test_order_and_split_of_rows_change_nothing(
    inference: bll.Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = data(300, 6)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), standardize=False)
    fit = bll.fit(layer, (features, targets), inference=inference)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr("bll_pyro.inference.exact.statistics.MIN_BLOCK", 17)
    monkeypatch.setattr("bll_pyro.inference.exact.statistics.BLOCK_NUMBERS", 1)
    again = bll.fit(layer, (features[order], targets[order]), inference=inference)
    assert again.log_evidence == pytest.approx(fit.log_evidence, abs=1e-10 * abs(fit.log_evidence))
    new = data(5, 6, seed=9)[0]
    one, other = fit.predict(new), again.predict(new)
    for name in ("mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-10, atol=1e-10)


def test_float32_features_give_the_same_posterior_in_their_precision() -> None:
    features, targets = data(200, 6)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=0.5))
    double = bll.fit(layer, (features, targets), inference=bll.Exact())
    single = bll.fit(layer, (features.float(), targets.float()), inference=bll.Exact())
    new = data(5, 6, seed=9)[0]
    assert single.predict(new.float()).mean.dtype == torch.float32
    torch.testing.assert_close(
        single.predict(new.float()).mean.double(), double.predict(new).mean, rtol=1e-4, atol=1e-4
    )
    assert single.log_evidence == pytest.approx(double.log_evidence, abs=1e-2)


@pytest.mark.parametrize(
    ("layer", "pattern"),
    [
        (
            bll.LastLayer(bll.likelihoods.Categorical(3)),
            r"got Categorical.*bll\.SVI\(\), bll\.Laplace\(\) or bll\.NUTS",
        ),
        (bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Laplace(1.0)), r"got Laplace.*bll\.SVI\(\)"),
    ],
)
def test_says_who_can_where_it_cannot(layer: bll.LastLayer, pattern: str) -> None:
    features, targets = data()
    labels = (targets[:, 0] > 0).long() if layer.likelihood.is_discrete else targets
    with pytest.raises(ValueError, match=pattern):
        bll.fit(layer, (features, labels), inference=bll.Exact())


def test_refuses_what_does_not_fit_in_memory() -> None:
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=1.0))
    bll.Exact().check(layer, 1000, 8193)
    unknown = bll.LastLayer(bll.likelihoods.Gaussian())
    bll.Exact().check(unknown, 100, 8193)
    bll.Exact(noise=bll.noises.Maximized()).check(unknown, 1000, 8193)
    with pytest.raises(ValueError, match=r"1000 outputs x 8193 columns.*noises\.Maximized"):
        bll.Exact().check(unknown, 1000, 8193)
    with pytest.raises(ValueError, match=r"fit in 8 GiB.*60000 columns, which take 160.*bll\.SVI"):
        bll.Exact().check(layer, 1, 60_000)
