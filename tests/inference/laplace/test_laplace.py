"""Laplace against the textbook posterior and evidence, brute force, reference draws, and itself after saving."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import bll_pyro as bll
from bll_pyro import gaussian
from bll_pyro.frame import Frame
from bll_pyro.inference.laplace.maximize import maximize_evidence
from bll_pyro.inference.rows import DesignRows
from bll_pyro.scope import generator, isolated

NUM_ROWS, NUM_FEATURES = 120, 4
CURVATURES = [bll.curvatures.Diagonal(), bll.curvatures.Kronecker(), bll.curvatures.Full()]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


FEATURES = random(NUM_ROWS, NUM_FEATURES, seed=0) @ random(NUM_FEATURES, NUM_FEATURES, seed=1) + 0.7
SIGNAL = FEATURES @ random(NUM_FEATURES, 3, seed=2)
VALUES = SIGNAL + 0.8 * random(NUM_ROWS, 3, seed=3)
LABELS = (SIGNAL + 2.0 * random(NUM_ROWS, 3, seed=4)).argmax(-1)
TARGETS = {
    bll.likelihoods.Categorical(3): LABELS,
    bll.likelihoods.Gaussian(): VALUES,
    bll.likelihoods.HeteroscedasticGaussian(): VALUES[:, 0],
    bll.likelihoods.StudentT(): VALUES[:, 0],
    bll.likelihoods.Bernoulli(): (VALUES > 0).double(),
    bll.likelihoods.Poisson(): LABELS,
    bll.likelihoods.NegativeBinomial(): LABELS,
    bll.likelihoods.Ordinal(3): LABELS,
    bll.likelihoods.MultivariateGaussian(): VALUES,
}
PRIORS = [
    bll.priors.Normal(0.7),
    bll.priors.Normal(),
    bll.priors.Normal(per_output=True),
    bll.priors.HierarchicalNormal(),
    bll.priors.HierarchicalNormal(per_feature=True),
]


def textbook(
    design: Tensor, targets: Tensor, noise: Tensor, prior_scale: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Mean ``[T, P]``, covariance ``[T, P, P]`` and log evidence of linear regression with known noise ``[T]``."""
    means, covariances, log_evidence = [], [], 0.0
    for y, s in zip(targets.mT, noise):
        covariance = torch.linalg.inv(design.mT @ design / s**2 + torch.diag(prior_scale**-2))
        means.append(covariance @ design.mT @ y / s**2)
        covariances.append(covariance)
        marginal = design @ torch.diag(prior_scale**2) @ design.mT + s**2 * torch.eye(len(y))
        log_evidence += stats.multivariate_normal(np.zeros(len(y)), marginal.numpy()).logpdf(y.numpy())
    return torch.stack(means), torch.stack(covariances), float(log_evidence)


class TestConjugate:
    @pytest.mark.parametrize("bias", [True, False])
    def test_full_is_the_textbook_posterior(self, bias: bool) -> None:
        noise = torch.tensor([0.5, 0.8, 2.0], dtype=torch.float64)
        likelihood = bll.likelihoods.Gaussian(tuple(noise.tolist()))
        layer = bll.LastLayer(
            likelihood, bll.priors.Normal(0.7), bias=bias, bias_scale=3.0, standardize=False
        )
        fit = bll.fit(layer, (FEATURES, VALUES), inference=bll.Laplace(bll.curvatures.Full()))
        design = torch.cat([FEATURES, torch.ones(NUM_ROWS, 1)], 1) if bias else FEATURES
        prior_scale = torch.tensor([0.7] * NUM_FEATURES + [3.0] * bias, dtype=torch.float64)
        mean, covariance, log_evidence = textbook(design, VALUES, noise, prior_scale)
        weights = fit.posterior.latents.weights
        assert isinstance(weights, gaussian.BlockDiagonal)
        torch.testing.assert_close(weights.loc, mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(weights.tril @ weights.tril.mT, covariance, rtol=1e-6, atol=1e-10)
        assert fit.log_evidence == pytest.approx(log_evidence, rel=1e-9)

    @pytest.mark.parametrize(
        ("curvature", "standardize"),
        [
            (curvature, standardize)
            for curvature in CURVATURES
            for standardize in (True, False)
            # the bias is correlated with features that are not centred
            if standardize or not isinstance(curvature, bll.curvatures.Diagonal)
        ],
        ids=repr,
    )
    def test_exact_inference_agrees(self, curvature: bll.curvatures.Curvature, standardize: bool) -> None:
        """Common noise: Kronecker is exact, and so is the diagonal where the bias is orthogonal to the features."""
        values = VALUES / VALUES.std(0, correction=0)
        layer = bll.LastLayer(bll.likelihoods.Gaussian(0.5), bll.priors.Normal(0.7), standardize=standardize)
        ours = bll.fit(layer, (FEATURES, values), inference=bll.Laplace(curvature))
        exact = bll.fit(layer, (FEATURES, values), inference=bll.Exact())
        new = random(20, NUM_FEATURES, seed=5)
        found, expected = ours.posterior.outputs(new), exact.posterior.outputs(new)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-10)
        assert ours.log_evidence == pytest.approx(exact.log_evidence, abs=1e-6)
        torch.testing.assert_close(ours.predict(new).scale, exact.predict(new).scale, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("per_output", [True, False])
    def test_the_scale_is_that_of_exact_inference(self, per_output: bool) -> None:
        layer = bll.LastLayer(bll.likelihoods.Gaussian(0.8), bll.priors.Normal(per_output=per_output))
        ours = bll.fit(layer, (FEATURES, VALUES), inference=bll.Laplace(bll.curvatures.Full()))
        exact = bll.fit(layer, (FEATURES, VALUES), inference=bll.Exact())
        torch.testing.assert_close(
            ours.posterior.learned["tau"], exact.posterior.learned["tau"], rtol=0.1, atol=0
        )
        assert exact.log_evidence - 0.05 < ours.log_evidence < exact.log_evidence + 1e-6

    def test_single_precision_is_near(self) -> None:
        layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
        for curvature in CURVATURES:
            double = bll.fit(layer, (FEATURES, LABELS), inference=bll.Laplace(curvature))
            single = bll.fit(layer, (FEATURES.float(), LABELS), inference=bll.Laplace(curvature))
            assert single.posterior.latents.weights.loc.dtype == torch.float32
            distance = (
                single.posterior.sample(1)["weight"].double() - double.posterior.sample(1)["weight"]
            ).abs()
            assert bool(torch.isfinite(distance).all())
            found, expected = single.predict(FEATURES[:9].float()), double.predict(FEATURES[:9])
            torch.testing.assert_close(found.probs.double(), expected.probs, rtol=0, atol=2e-3)
            assert single.log_evidence == pytest.approx(double.log_evidence, abs=1e-2)


class TestUnknownNoise:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("curvature", [bll.curvatures.Full(), bll.curvatures.Kronecker()], ids=repr)
    def test_reference_draws(
        self, data_dir: Path, curvature: bll.curvatures.Curvature, dtype: torch.dtype
    ) -> None:
        """posteriordb's sblri-blr: means within 0.1 reference standard deviations, scales within 10% (noise 15%)."""
        reference = np.load(data_dir / "posteriordb" / "sblri-blr.npz", allow_pickle=False)
        rows = (torch.tensor(reference["X"]).to(dtype), torch.tensor(reference["y"]).to(dtype))
        likelihood = bll.likelihoods.Gaussian(dist.HalfNormal(torch.tensor(10.0, dtype=dtype)))
        layer = bll.LastLayer(likelihood, bll.priors.Normal(10.0), bias=False, standardize=False)
        fit = bll.fit(layer, rows, inference=bll.Laplace(curvature))
        num_draws = 20_000
        draws = fit.posterior.sample(num_draws, seed=1)
        for found, expected, tolerance in [
            (draws["weight"][0, :, 0], reference["beta"], 0.10),
            (draws["noise_scale"][0][:, None], reference["sigma"][:, None], 0.15),
        ]:
            mean, scale = expected.mean(0), expected.std(0)
            assert (abs(found.mean(0).numpy() - mean) < 0.1 * scale).all()
            assert (abs(found.std(0).numpy() / scale - 1) < tolerance).all()

    def test_evidence_with_the_noise_integrated_out(self) -> None:
        """One more integral, over log noise, that Laplace's approximation does by a Gaussian."""
        layer = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(0.7))
        for curvature in CURVATURES:
            ours = bll.fit(layer, (FEATURES, VALUES), inference=bll.Laplace(curvature))
            exact = bll.fit(layer, (FEATURES, VALUES), inference=bll.Exact())
            # the next term of Stirling's series for three Gamma functions of about N / 2
            assert ours.log_evidence == pytest.approx(exact.log_evidence, abs=3 * 1 / (3 * NUM_ROWS) + 0.01)
            found, expected = (
                ours.posterior.sample(4000)["noise_scale"],
                exact.posterior.sample(4000)["noise_scale"],
            )
            error = expected.std(1) / math.sqrt(2000)
            assert bool(((found.mean(1) - expected.mean(1)).abs() < 5 * error + 0.1 * expected.std(1)).all())
            torch.testing.assert_close(found.std(1), expected.std(1), rtol=0.08, atol=0)

    def test_weights_move_with_the_noise(self) -> None:
        """Few rows: more noise, more shrinkage. The full covariance knows; the marginal of the weights adds it."""
        layer = bll.LastLayer(
            bll.likelihoods.Gaussian(), bll.priors.Normal(0.3), standardize=False, bias=False
        )
        rows = (FEATURES[:12], VALUES[:12, 0])
        fit = bll.fit(layer, rows, inference=bll.Laplace(bll.curvatures.Full()))
        latents = fit.posterior.latents
        assert latents.coupling is not None and latents.num_globals == 1
        # where u is one standard deviation higher, the mode is that of ridge regression with the noise there
        for step in (-0.05, 0.05):
            u = latents.globals_loc + step * latents.globals_factor[0]
            noise = u.exp()
            mean, _, _ = textbook(rows[0], rows[1][:, None], noise, torch.full((4,), 0.3).double())
            expected = latents.weights.loc + step * latents.coupling[..., 0]
            moved = (mean - latents.weights.loc).norm()
            assert float((expected - mean).norm()) < 0.05 * float(moved)
        draws = fit.posterior.sample(50_000, seed=2)
        together = torch.cat([draws["weight"][0, :, 0], draws["noise_scale"][0, :, None].log()], 1).mT.cov()
        assert float(together[:-1, -1].norm()) > 0
        expected = latents.coupling[0, :, 0] * latents.globals_factor[0, 0]
        spread = (together.diagonal()[:-1] * together[-1, -1] / 50_000).sqrt()
        assert bool(((together[:-1, -1] - expected).abs() < 5 * spread).all())


class TestBruteForce:
    def logistic(self) -> tuple[Tensor, Tensor]:
        features = random(200, 2, seed=6)
        probs = torch.sigmoid(features @ torch.tensor([1.0, -0.5]).double())
        return features, (torch.rand(200, generator=generator(7), dtype=torch.float64) < probs).double()

    @pytest.mark.slow
    def test_evidence_and_moments_of_a_logistic_model(self) -> None:
        """Two weights, so that the posterior can be summed over a grid."""
        features, targets = self.logistic()
        layer = bll.LastLayer(
            bll.likelihoods.Bernoulli(), bll.priors.Normal(1.5), bias=False, standardize=False
        )
        axis = torch.linspace(-3, 3, 401, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        outputs = grid @ features.mT
        log_joint = dist.Bernoulli(logits=outputs).log_prob(targets).sum(-1)
        log_joint = log_joint + dist.Normal(0.0, 1.5).log_prob(grid).sum(-1)
        log_evidence = float(log_joint.logsumexp(0)) + 2 * math.log(6 / 400)
        weights = (log_joint - log_joint.logsumexp(0)).exp()
        mean = weights @ grid
        covariance = (grid - mean).mT @ ((grid - mean) * weights[:, None])
        full, kronecker, diagonal = (
            bll.fit(layer, (features, targets), inference=bll.Laplace(c))
            for c in (bll.curvatures.Full(), bll.curvatures.Kronecker(), bll.curvatures.Diagonal())
        )
        assert full.log_evidence == pytest.approx(log_evidence, abs=0.02)
        assert kronecker.log_evidence == pytest.approx(full.log_evidence, abs=1e-8)
        assert diagonal.log_evidence == pytest.approx(log_evidence, abs=0.05)
        for fit in (full, kronecker, diagonal):
            gaussian_weights = fit.posterior.latents.weights
            shown = fit.posterior.frame.split(gaussian_weights.loc[None])["weight"][0, 0]
            assert bool(((shown - mean).abs() < 0.1 * covariance.diagonal().sqrt()).all())
        scale = full.posterior.latents.weights.marginal_scale()[0]
        torch.testing.assert_close(scale, covariance.diagonal().sqrt(), rtol=0.03, atol=0)

    @pytest.mark.parametrize("curvature", CURVATURES, ids=repr)
    @pytest.mark.parametrize("likelihood", list(TARGETS)[:5], ids=repr)
    @pytest.mark.thinned(4)
    def test_the_learned_scale_has_the_highest_evidence(
        self, likelihood: bll.likelihoods.Likelihood, curvature: bll.curvatures.Curvature
    ) -> None:
        rows = (FEATURES, TARGETS[likelihood])
        layer = bll.LastLayer(likelihood, bll.priors.Normal())
        inference = bll.Laplace(curvature, scale_criterion=bll.criteria.Evidence())
        best = bll.fit(layer, rows, inference=inference)
        tau = float(best.posterior.learned["tau"])
        for factor in (0.3, 0.8, 1.25, 3.0):
            other = replace(layer, prior=bll.priors.Normal(tau * factor))
            fit = bll.fit(other, rows, inference=bll.Laplace(curvature))
            # noise is integrated out of one and not maximised, so that the summits may differ by a little
            assert fit.log_evidence < best.log_evidence + (0.02 if fit.posterior.latents.num_globals else 0)
        path = best.trace.statistics["evidence_path"]
        assert len(path) == len(best.trace.statistics["psi_path"]) < 30

    @pytest.mark.parametrize("prior", PRIORS, ids=repr)
    @pytest.mark.parametrize("likelihood", TARGETS, ids=repr)
    @pytest.mark.thinned(7)
    def test_the_slope_of_the_evidence(
        self, likelihood: bll.likelihoods.Likelihood, prior: bll.priors.Prior
    ) -> None:
        """Against differences of the evidence, each at a mode of its own: the mode moves, and log |P| with it."""
        whole = bll.LastLayer(likelihood, prior, standardize=False)
        for curvature in CURVATURES:
            # Kronecker takes scales of outputs beside one of the bias by their diagonal, without a slope of the axes
            kronecker = isinstance(curvature, bll.curvatures.Kronecker)
            layer = replace(whole, bias=not (kronecker and getattr(prior, "per_output", False)))
            inference = bll.Laplace(curvature, tolerance=1e-9)
            with isolated(0, torch.float64):
                targets = likelihood.check_targets(TARGETS[likelihood])
                shape = tuple(TARGETS[likelihood].shape[1:]) if targets.dim() > 1 else ()
                evidence = inference.evidence(layer, rows_of(FEATURES, targets, layer.bias), shape)
                psi = evidence.settings.start(evidence.like[0, 0])
            psi = psi + 0.3 * random(len(psi), seed=8)
            at = evidence.fit_at(psi)
            slope = evidence.gradient(at)
            for index in range(len(psi)):
                step = torch.zeros_like(psi)
                step[index] = 1e-4
                ahead, behind = (
                    evidence.fit_at(psi + sign * step, at.mode.weights).log_evidence for sign in (1, -1)
                )
                found = (ahead - behind) / 2e-4
                size = 1e-3 + float(slope.abs().max())
                assert abs(found - float(slope[index])) < 1e-3 * size


def rows_of(features: Tensor, targets: Tensor, bias: bool = True) -> DesignRows:
    num_targets = 1 if targets.dim() == 1 else targets.shape[1]
    return DesignRows(features, targets, Frame.identity(features.shape[1], num_targets, features[:0], bias))


def in_turns() -> list[tuple[bll.likelihoods.Likelihood, bll.priors.Prior, bll.curvatures.Curvature]]:
    """Each two of likelihood, prior and curvature meet."""
    return [
        (likelihood, prior, CURVATURES[(i + j) % len(CURVATURES)])
        for i, likelihood in enumerate(TARGETS)
        for j, prior in enumerate(PRIORS)
    ]


def test_each_two_meet() -> None:
    for one, other, sizes in (
        (0, 1, (TARGETS, PRIORS)),
        (0, 2, (TARGETS, CURVATURES)),
        (1, 2, (PRIORS, CURVATURES)),
    ):
        assert len({(repr(case[one]), repr(case[other])) for case in in_turns()}) == len(sizes[0]) * len(
            sizes[1]
        )


@pytest.mark.parametrize(("likelihood", "prior", "curvature"), in_turns(), ids=repr)
@pytest.mark.thinned(7)
def test_everything_downstream(
    likelihood: bll.likelihoods.Likelihood,
    prior: bll.priors.Prior,
    curvature: bll.curvatures.Curvature,
    tmp_path: Path,
) -> None:
    """Predict, draw, score, save and load, for every pair."""
    layer = bll.LastLayer(likelihood, prior)
    fit = bll.fit(layer, (FEATURES, TARGETS[likelihood]), inference=bll.Laplace(curvature))
    assert fit.trace.converged and not fit.trace.messages
    assert math.isfinite(fit.log_evidence)
    assert fit.layer == layer and fit.posterior.layer.prior == layer.prior
    prediction = fit.predict(FEATURES)
    assert bool(torch.isfinite(prediction.log_prob(TARGETS[likelihood])).all())
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)
    assert float(prediction.epistemic.std()) > 0
    draws = fit.posterior.sample(200, seed=1)
    assert bool(torch.isfinite(fit.posterior.log_prob(draws)).all())
    outputs = fit.posterior.draw_outputs(fit.posterior.sample(4000, seed=2), FEATURES[:5])
    expected = fit.posterior.outputs(FEATURES[:5])
    error = (expected.variance / 4000).sqrt()
    assert bool(((outputs.mean(0) - expected.mean).abs() < 5 * error).all())
    assert bool(((outputs.var(0) / expected.variance - 1).abs() < 5 * math.sqrt(2 / 4000)).all())
    fit.save(tmp_path / "fit")
    again = bll.load(tmp_path / "fit")
    torch.testing.assert_close(again.predict(FEATURES).total, prediction.total, rtol=0, atol=0)
    assert again.log_evidence == fit.log_evidence
    assert again.inference == fit.inference


class TestStructures:
    @pytest.mark.parametrize(
        ("curvature", "likelihood", "kind", "turned"),
        [
            (bll.curvatures.Diagonal(), bll.likelihoods.Categorical(3), gaussian.Diagonal, True),
            (bll.curvatures.Diagonal(False), bll.likelihoods.Categorical(3), gaussian.Diagonal, False),
            (bll.curvatures.Kronecker(), bll.likelihoods.Categorical(3), gaussian.Kronecker, False),
            (bll.curvatures.Full(), bll.likelihoods.Categorical(3), gaussian.Dense, False),
            (bll.curvatures.Full(), bll.likelihoods.Poisson(), gaussian.BlockDiagonal, False),
            (bll.curvatures.Full(), bll.likelihoods.NegativeBinomial(), gaussian.Dense, False),
        ],
        ids=repr,
    )
    def test_kinds(
        self,
        curvature: bll.curvatures.Curvature,
        likelihood: bll.likelihoods.Likelihood,
        kind: type,
        turned: bool,
    ) -> None:
        layer = bll.LastLayer(likelihood, bll.priors.Normal(1.0))
        fit = bll.fit(layer, (FEATURES, LABELS), inference=bll.Laplace(curvature))
        assert type(fit.posterior.latents.weights) is kind
        assert (fit.posterior.frame.rotation is not None) == turned

    def test_default(self) -> None:
        assert bll.Laplace().curvature == bll.curvatures.Kronecker()

    def test_a_centre_turns_along(self) -> None:
        """With a tight prior the weights are its centre, in whatever axes the posterior is diagonal."""
        center = random(3, NUM_FEATURES, seed=9)
        for curvature in [*CURVATURES, bll.curvatures.Diagonal(False)]:
            layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1e-4, loc=center))
            fit = bll.fit(layer, (FEATURES, LABELS), inference=bll.Laplace(curvature))
            torch.testing.assert_close(fit.posterior.sample(1)["weight"][0, 0], center, rtol=0, atol=1e-2)

    @pytest.mark.parametrize("curvature", [bll.curvatures.Full(), bll.curvatures.Diagonal()], ids=repr)
    def test_the_posterior_as_the_next_prior(self, curvature: bll.curvatures.Curvature) -> None:
        layer = bll.LastLayer(bll.likelihoods.Gaussian(0.8), bll.priors.Normal(0.7), standardize=False)
        inference = bll.Laplace(bll.curvatures.Full())
        first = bll.fit(layer, (FEATURES[:50], VALUES[:50]), inference=inference)
        next_layer = replace(layer, prior=first.as_prior())
        second = bll.fit(next_layer, (FEATURES[50:], VALUES[50:]), inference=bll.Laplace(curvature))
        whole = bll.fit(layer, (FEATURES, VALUES), inference=inference)
        found, expected = second.posterior.latents.weights, whole.posterior.latents.weights
        torch.testing.assert_close(found.loc, expected.loc, rtol=1e-6, atol=1e-8)
        if curvature == bll.curvatures.Full():
            torch.testing.assert_close(found.marginal_scale(), expected.marginal_scale(), rtol=1e-6, atol=0)
            assert first.log_evidence + second.log_evidence == pytest.approx(whole.log_evidence, abs=1e-6)

    def test_fit_at_is_a_door_for_other_criteria(self) -> None:
        """Any scale, from any start: the same mode as a fit with that scale."""
        layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(), standardize=False)
        inference = bll.Laplace()
        with isolated(0, torch.float64):
            evidence = inference.evidence(layer, rows_of(FEATURES, LABELS), ())
            optimum = maximize_evidence(evidence)
            at = evidence.fit_at(torch.tensor([math.log(0.3)]).double(), optimum.point.mode.weights)
        fixed = bll.fit(replace(layer, prior=bll.priors.Normal(0.3)), (FEATURES, LABELS), inference=inference)
        torch.testing.assert_close(at.mode.weights, fixed.posterior.latents.weights.loc, rtol=0, atol=1e-7)
        assert at.log_evidence == pytest.approx(fixed.log_evidence, abs=1e-8)


class TestHardData:
    def test_separable_classes(self) -> None:
        features = torch.cat([random(30, 6, seed=10) - 6, random(30, 6, seed=11) + 6])
        labels = torch.arange(60) // 30
        for prior in (bll.priors.Normal(10.0), bll.priors.Normal()):
            fit = bll.fit(
                bll.LastLayer(bll.likelihoods.Categorical(2), prior),
                (features, labels),
                inference=bll.Laplace(),
            )
            assert bool(torch.isfinite(fit.posterior.latents.weights.loc).all())
            assert bool((fit.predict(features).label == labels).all())

    @pytest.mark.parametrize("curvature", CURVATURES, ids=repr)
    def test_labels_without_a_signal(self, curvature: bll.curvatures.Curvature) -> None:
        labels = torch.randint(3, (NUM_ROWS,), generator=generator(12))
        layer = bll.LastLayer(bll.likelihoods.Categorical(3))
        fit = bll.fit(layer, (FEATURES, labels), inference=bll.Laplace(curvature))
        assert float(fit.posterior.learned["tau"]) < 0.3
        assert float(fit.predict(FEATURES).confidence.max()) < 0.7

    def test_more_features_than_rows_and_dead_ones(self) -> None:
        features = random(40, 90, seed=13)
        features[:, 5:9] = 0.0
        features[:, 9] = features[:, 10]
        labels = (features[:, 0] > 0).long()
        for curvature in CURVATURES:
            layer = bll.LastLayer(bll.likelihoods.Categorical(2), bll.priors.Normal(1.0))
            fit = bll.fit(layer, (features.float(), labels), inference=bll.Laplace(curvature))
            assert fit.trace.converged
            scale = fit.posterior.sample(2000)["weight"][0, :, 0, 5:9].std(0)
            torch.testing.assert_close(scale, torch.ones(4), rtol=0.1, atol=0)  # the data say nothing of them

    def test_bad_rows_are_refused_before_any_work(self) -> None:
        broken = FEATURES.clone()
        broken[3, 1] = math.nan
        with pytest.raises(ValueError, match="NaN"):
            bll.fit(bll.LastLayer(bll.likelihoods.Categorical(3)), (broken, LABELS), inference=bll.Laplace())


class TestRefusals:
    @pytest.mark.parametrize(
        "prior",
        [
            bll.priors.Laplace(1.0),
            bll.priors.StudentT(),
            bll.priors.SpikeAndSlab(),
            bll.priors.Horseshoe(),
        ],
        ids=repr,
    )
    def test_priors_that_are_not_gaussian(self, prior: bll.priors.Prior) -> None:
        layer = bll.LastLayer(bll.likelihoods.Categorical(3), prior)
        with pytest.raises(ValueError, match=r"Laplace: expected a prior.*use priors.Normal, .* bll.SVI"):
            bll.fit(layer, (FEATURES, LABELS), inference=bll.Laplace())

    def test_too_many_scales(self) -> None:
        prior = bll.priors.HierarchicalNormal(per_output=True, per_feature=True)
        layer = bll.LastLayer(bll.likelihoods.Categorical(3), prior)
        with pytest.raises(
            ValueError, match=r"up to 100 unknowns with a prior .* HierarchicalNormal with 120; use priors"
        ):
            bll.Laplace().check(layer, 3, 41)
        bll.Laplace().check(layer, 3, 21)
        noisy = bll.LastLayer(bll.likelihoods.Gaussian())
        with pytest.raises(
            ValueError, match=r"Gaussian with a noise scale for each of 101; use known noise, or bll.Exact"
        ):
            bll.Laplace().check(noisy, 101, 5)

    def test_kronecker_and_a_prior_with_a_covariance(self) -> None:
        layer = bll.LastLayer(bll.likelihoods.Gaussian(0.8), bll.priors.Normal(0.7))
        first = bll.fit(layer, (FEATURES, VALUES), inference=bll.Laplace(bll.curvatures.Full()))
        next_layer = replace(layer, prior=first.as_prior())
        with pytest.raises(
            ValueError, match=r"Laplace\(Kronecker\(\)\): expected a prior of independent weights.*Full\(\)"
        ):
            bll.fit(next_layer, (FEATURES, VALUES), inference=bll.Laplace())

    def test_too_large(self) -> None:
        layer = bll.LastLayer(bll.likelihoods.Categorical(1000))
        with pytest.raises(
            ValueError, match=r"Full: .* 1000 outputs x 2049 columns.*use bll.curvatures.Kronecker\(\)"
        ):
            bll.Laplace(bll.curvatures.Full()).check(layer, 1000, 2049)

    @pytest.mark.unchecked
    def test_wrong_arguments(self) -> None:
        with pytest.raises(
            TypeError, match=r"expected a curvature such as bll.curvatures.Kronecker\(\), got 'full'"
        ):
            bll.Laplace(curvature="full")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="tolerance"):
            bll.Laplace(tolerance=-1.0)
        with pytest.raises(ValueError, match="max_steps"):
            bll.Laplace(max_steps=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "bounds"),
    [
        (None, {"nll": 0.2734, "ece": 0.010, "auroc": 0.94}),
        (1.0, {"nll": 0.2734, "ece": 0.010, "auroc": 0.96}),
    ],
)
def test_real_features(data_dir: Path, scale: float | None, bounds: dict[str, float]) -> None:
    """Fashion-MNIST features of a small network, with MNIST as what lies outside."""
    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)
    train, test, outside = (torch.tensor(stored[f"H_{name}"]).float() for name in ("train", "test", "mnist"))
    labels, test_labels = (torch.tensor(stored[f"y_{name}"]).long() for name in ("train", "test"))
    layer = bll.LastLayer(bll.likelihoods.Categorical(10), bll.priors.Normal(scale))
    fit = bll.fit(layer, (train, labels), inference=bll.Laplace())
    prediction, unknown = fit.predict(test), fit.predict(outside)
    assert -float(prediction.log_prob(test_labels).mean()) <= bounds["nll"]
    assert bll.metrics.ece(prediction.probs, test_labels) <= bounds["ece"]
    assert bll.metrics.auroc(prediction.epistemic, unknown.epistemic) >= bounds["auroc"]
