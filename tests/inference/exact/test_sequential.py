"""Data that come in parts: updating an exact fit, and the posterior of some rows as the prior of the next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.gaussian import Dense, MatrixNormal
from bll_pyro.inference.exact.gaussian_prior import condition
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import DesignRows
from bll_pyro.posterior import GaussianPosterior

KNOWN = bll.likelihoods.Gaussian(noise_scale=(0.4, 0.7))
UNKNOWN = bll.likelihoods.Gaussian()


def data(num_rows: int = 60, num_features: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": random, "dtype": torch.float64}
    features = (
        torch.randn(num_rows, num_features, **options) @ torch.randn(num_features, num_features, **options)
        + 1
    )
    weights = torch.randn(num_features, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return features, features @ weights + 0.5 * torch.randn(num_rows, 2, **options) - 1


FEATURES, TARGETS = data()
FIRST, SECOND = (FEATURES[:25], TARGETS[:25]), (FEATURES[25:], TARGETS[25:])
NEW = data(7, seed=1)[0]


def assert_same_predictions(one: bll.Fit, other: bll.Fit, tolerance: float) -> None:
    a, b = one.predict(NEW), other.predict(NEW)
    for name in ("mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("likelihood", "noise"),
    [
        (KNOWN, bll.noises.Integrated()),
        (UNKNOWN, bll.noises.Integrated()),
        (UNKNOWN, bll.noises.Conjugate()),
        (UNKNOWN, bll.noises.Maximized()),
    ],
)
@pytest.mark.thinned(8)
def test_update_equals_one_fit_on_all_rows(likelihood: Any, noise: Any, bias: bool, tmp_path: Path) -> None:
    """Everything learned is learned anew: prior scale, noise, evidence. Also after saving and loading."""
    layer = bll.LastLayer(likelihood, bias=bias, standardize=False)
    inference = bll.Exact(noise=noise)
    whole = bll.fit(layer, (FEATURES, TARGETS), inference=inference)
    first = bll.fit(layer, FIRST, inference=inference)
    first.save(tmp_path)
    before = first.predict(NEW).mean.clone()
    updated = first.update(SECOND)
    assert torch.equal(first.predict(NEW).mean, before)
    assert updated.num_rows == 60 and first.num_rows == 25
    for fit in (updated, bll.load(tmp_path).update(SECOND), updated.update(FIRST)):
        assert fit.num_rows == len(fit.predict(FEATURES).mean) + (25 if fit.num_rows > 60 else 0)
        if fit.num_rows > 60:
            twice = bll.fit(
                layer, tuple(map(torch.cat, zip((FEATURES, TARGETS), FIRST))), inference=inference
            )
            assert fit.log_evidence == pytest.approx(twice.log_evidence, rel=1e-10)
            continue
        assert fit.log_evidence == pytest.approx(whole.log_evidence, rel=1e-10)
        assert_same_predictions(fit, whole, 1e-9)
        for name, value in whole.posterior.learned.items():
            torch.testing.assert_close(fit.posterior.learned[name], value, rtol=1e-9, atol=0.0)


def test_update_keeps_the_frame_of_the_first_rows() -> None:
    layer = bll.LastLayer(UNKNOWN)
    first = bll.fit(layer, FIRST, inference=bll.Exact())
    updated = first.update(SECOND)
    frame = replace(first.posterior.frame, rotation=None)
    for name, value in frame.tensors.items():
        assert torch.equal(updated.posterior.frame.tensors[name], value)
    posterior, trace = bll.Exact().run(layer, DesignRows(FEATURES, TARGETS, frame), (2,), seed=0)
    shift = 60 * float(frame.target_scale.log().sum())
    assert updated.log_evidence == pytest.approx(trace.statistics["log_evidence"] - shift, rel=1e-10)
    torch.testing.assert_close(
        updated.posterior.outputs(NEW).mean, posterior.outputs(NEW).mean, rtol=1e-9, atol=1e-9
    )


def test_what_is_kept_for_an_update_does_not_grow_with_the_rows() -> None:
    layer = bll.LastLayer(UNKNOWN)
    sizes = []
    for repeats in (1, 50):
        fit = bll.fit(layer, (FEATURES.repeat(repeats, 1), TARGETS.repeat(repeats, 1)), inference=bll.Exact())
        sums = fit.trace.statistics["sums"]
        sizes.append(
            sum(getattr(sums, n).numel() for n in ("gram", "cross", "square", "feature_mean", "target_mean"))
        )
    assert sizes[0] == sizes[1] == 16 + 8 + 2 + 4 + 2


def test_update_says_what_it_needs() -> None:
    exact = bll.fit(bll.LastLayer(UNKNOWN), FIRST, inference=bll.Exact())
    with pytest.raises(ValueError, match=r"targets of data of update: expected shape \[60, 2\], got \[60\]"):
        exact.update((FEATURES, TARGETS[:, 0]))
    with pytest.raises(ValueError, match=r"features of shape \[N, 4\], got \[60, 3\]"):
        exact.update((FEATURES[:, :3], TARGETS))
    variational = bll.fit(bll.LastLayer(UNKNOWN), FIRST, inference=bll.SVI(num_epochs=1))
    with pytest.raises(TypeError, match=r"expected a fit by bll\.Exact\(\).*got SVI.*as_prior"):
        variational.update(SECOND)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_exact_posterior_as_prior_equals_one_fit(bias: bool, standardize: bool) -> None:
    layer = bll.LastLayer(KNOWN, bll.priors.Normal(scale=0.8), bias, standardize=standardize)
    first = bll.fit(layer, FIRST, inference=bll.Exact())
    second = bll.fit(replace(layer, prior=first.as_prior()), SECOND, inference=bll.Exact())
    whole = first.update(SECOND)  # equal to one fit, as tested above; in the frame of the first
    if not standardize:
        whole = bll.fit(layer, (FEATURES, TARGETS), inference=bll.Exact())
    assert_same_predictions(second, whole, 1e-8)
    # p(y1) p(y2 | y1) = p(y)
    assert first.log_evidence + second.log_evidence == pytest.approx(whole.log_evidence, abs=1e-8)
    # and a third part, from the second's dense covariance
    third = bll.fit(replace(layer, prior=second.as_prior()), FIRST, inference=bll.Exact())
    assert_same_predictions(third, second.update(FIRST), 1e-8)
    assert_same_predictions(third, whole.update(FIRST), 1e-8)
    for fit in (first, second):
        draws, density = fit.posterior.sample(4, seed=1), fit.as_prior()
        values = density.frame.join(draws["weight"][0], draws["bias"][0] if bias else None)
        torch.testing.assert_close(
            density.log_prob(values), fit.posterior.log_prob(draws)[0], rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("coupled", [MatrixNormal, Dense])
def test_conditioning_a_prior_that_couples_outputs(coupled: type) -> None:
    """Against one Gaussian over the weights of both outputs and all targets."""
    random = torch.Generator().manual_seed(3)
    size = 10  # 2 outputs x (4 features and a bias)
    loc = torch.randn(2, 5, generator=random, dtype=torch.float64)
    if coupled is Dense:
        root = torch.randn(size, size, generator=random, dtype=torch.float64)
        prior: Any = Dense(loc, root.view(2, 5, size), torch.linalg.slogdet(root).logabsdet)
        covariance = root @ root.T
    else:
        rows = torch.tensor([[1.0, 0.0], [0.8, 0.5]]).double()
        columns = torch.randn(5, 5, generator=random, dtype=torch.float64).tril() + 2 * torch.eye(5)
        prior, covariance = MatrixNormal(loc, rows, columns), torch.kron(rows @ rows.T, columns @ columns.T)
    noise = torch.tensor([0.4, 0.7]).double()
    weights, evidence = condition(prior, SufficientStatistics.of(*FIRST), noise, bias=True)
    design = torch.kron(torch.eye(2).double(), torch.cat([FIRST[0], torch.ones(25, 1).double()], 1))
    own = torch.diag(noise.square().repeat_interleave(25))
    marginal = design @ covariance @ design.T + own
    y = FIRST[1].T.flatten()
    gain = covariance @ design.T @ torch.linalg.inv(marginal)
    torch.testing.assert_close(weights.loc.flatten(), loc.flatten() + gain @ (y - design @ loc.flatten()))
    factor = weights.factor.view(size, size)
    torch.testing.assert_close(
        factor @ factor.T, covariance - gain @ design @ covariance, rtol=1e-7, atol=1e-9
    )
    joint = torch.distributions.MultivariateNormal(design @ loc.flatten(), marginal)
    assert evidence == pytest.approx(float(joint.log_prob(y)), rel=1e-9)


@pytest.mark.parametrize("guide", [bll.guides.FullRank(), bll.guides.Diagonal()])
@pytest.mark.slow
def test_variational_posterior_as_prior(guide: Any) -> None:
    """Two fits in a row reach what one exact fit of all rows says, as far as the guide can."""
    y1, y2 = FIRST[1][:, 0], SECOND[1][:, 0]
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=0.5), bll.priors.Normal(scale=0.8))
    inference = bll.SVI(guide=guide, num_epochs=600)
    first = bll.fit(layer, (FIRST[0], y1), inference=inference)
    second = bll.fit(replace(layer, prior=first.as_prior()), (SECOND[0], y2), inference=inference)
    exact = bll.fit(layer, (FIRST[0], y1), inference=bll.Exact()).update((SECOND[0], y2))
    one, other = second.predict(NEW), exact.predict(NEW)
    deviation = ((one.mean - other.mean) / other.epistemic.sqrt()).abs().max()
    ratio = one.epistemic.sqrt() / other.epistemic.sqrt()
    if isinstance(guide, bll.guides.FullRank):
        assert deviation < 0.05
        assert bool(((ratio > 0.95) & (ratio < 1.05)).all())
        assert abs(second.elbo + first.elbo - exact.log_evidence) < 0.1
    else:  # exact in the axes of the first rows, mean-field in those of the second
        assert deviation < 1.0
        assert bool(((ratio > 0.7) & (ratio < 1.3)).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
def test_classes_go_on_from_the_posterior_of_earlier_rows() -> None:
    labels = (TARGETS[:, 0] > 0).long()
    layer = bll.LastLayer(bll.likelihoods.Categorical(2), bll.priors.Normal(scale=1.0), standardize="common")
    inference = bll.SVI(guide=bll.guides.FullRank(), num_epochs=400)
    first = bll.fit(layer, (FIRST[0], labels[:25]), inference=inference)
    second = bll.fit(replace(layer, prior=first.as_prior()), (SECOND[0], labels[25:]), inference=inference)
    whole = bll.fit(layer, (FEATURES, labels), inference=inference)
    torch.testing.assert_close(second.predict(NEW).probs, whole.predict(NEW).probs, rtol=0.0, atol=0.08)
    assert second.predict(NEW).epistemic.mean() < first.predict(NEW).epistemic.mean()


def test_unknown_noise_is_integrated_out_of_the_prior() -> None:
    fit = bll.fit(
        bll.LastLayer(UNKNOWN), FIRST, inference=bll.SVI(guide=bll.guides.FullRank(), num_epochs=50)
    )
    assert isinstance(fit.posterior, GaussianPosterior)
    prior, draws = fit.as_prior(), fit.posterior.sample(20_000)
    weights = prior.frame.join(draws["weight"][0], draws["bias"][0])
    torch.testing.assert_close(prior.weights.marginal_scale(), weights.std(0), rtol=0.05, atol=0.0)
    second = bll.fit(bll.LastLayer(UNKNOWN, prior), SECOND, inference=bll.SVI(num_epochs=2))
    assert "noise_scale" in second.posterior.sample(2)


def test_what_is_not_gaussian_is_no_prior() -> None:
    mixture = bll.fit(bll.LastLayer(UNKNOWN), FIRST, inference=bll.Exact())
    with pytest.raises(
        TypeError, match=r"expected a Gaussian posterior, got NoiseMixturePosterior.*fit\.update"
    ):
        mixture.as_prior()
    point = bll.fit(bll.LastLayer(UNKNOWN), FIRST, inference=bll.SVI(guide=bll.guides.MAP(), num_epochs=1))
    with pytest.raises(TypeError, match="got a point"):
        point.as_prior()


def test_a_prior_brings_its_coordinates() -> None:
    first = bll.fit(bll.LastLayer(KNOWN), FIRST, inference=bll.Exact())
    prior = first.as_prior()
    with pytest.raises(ValueError, match=r"expected a weight of shape \[2, 4\].*got \[2, 3\]"):
        bll.fit(bll.LastLayer(KNOWN, prior), (SECOND[0][:, :3], SECOND[1]), inference=bll.Exact())
    with pytest.raises(ValueError, match="bias=False"):
        bll.fit(bll.LastLayer(KNOWN, prior, bias=False), SECOND, inference=bll.Exact())
    with pytest.raises(ValueError, match="expected a known noise scale with a posterior as the prior"):
        bll.fit(bll.LastLayer(UNKNOWN, prior), SECOND, inference=bll.Exact())
    joint = bll.SVI(backbone_learning_rate=1e-3)
    with pytest.raises(ValueError, match="expected frozen features"):
        bll.fit(bll.LastLayer(KNOWN, prior), SECOND, torch.nn.Identity(), joint)
    shifted = bll.fit(bll.LastLayer(KNOWN, prior), (SECOND[0] * 3, SECOND[1]), inference=bll.Exact())
    assert torch.equal(shifted.posterior.frame.center, first.posterior.frame.center)


def test_a_prior_can_be_written_down(tmp_path: Path) -> None:
    first = bll.fit(bll.LastLayer(KNOWN), FIRST, inference=bll.Exact())
    prior = first.as_prior()
    tensors: dict[str, Tensor] = {}
    assert from_plain(to_plain(prior, tensors), tensors) == prior
    second = bll.fit(bll.LastLayer(KNOWN, prior), SECOND, inference=bll.Exact())
    second.save(tmp_path)
    again = bll.load(tmp_path)
    assert again.layer == second.layer
    assert_same_predictions(again, second, 0.0)
