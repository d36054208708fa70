"""A likelihood of one's own gives a distribution; all that follows from it equals the library's closed forms."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.derived import Marginal, positive_part
from bll_pyro.scope import generator, isolated, without_validation

lk = bll.likelihoods
N = 200


@dataclass(frozen=True, eq=False)
class OwnPoisson(Likelihood):
    is_count = True

    def distribution(self, outputs, exposure=None, **_):
        return dist.Poisson(outputs.exp() * (1.0 if exposure is None else exposure))


@dataclass(frozen=True, eq=False)
class OwnGaussian(Likelihood):
    real_valued = True

    def sites(self, target_shape):
        return lk.Gaussian().sites(target_shape)

    def distribution(self, outputs, noise_scale, **_):
        return dist.Normal(outputs, noise_scale).to_event(1)


@dataclass(frozen=True, eq=False)
class OwnHeteroscedastic(Likelihood):
    real_valued = True

    def num_outputs(self, target_shape):
        return 2 * math.prod(target_shape)

    def distribution(self, outputs, **_):
        loc, log_scale = outputs.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp())


@dataclass(frozen=True, eq=False)
class OwnBernoulli(Likelihood):
    is_binary = True

    def distribution(self, outputs, **_):
        return dist.Bernoulli(logits=outputs)


@dataclass(frozen=True, eq=False)
class OwnCategorical(Likelihood):
    num_classes: int = 3
    is_discrete = True

    def num_outputs(self, target_shape):
        return self.num_classes

    def distribution(self, outputs, **_):
        return dist.Categorical(logits=outputs)


class Bare(dist.Normal):
    """A Normal that can be drawn and scored, and no more."""

    mean = variance = property(lambda self: (_ for _ in ()).throw(NotImplementedError()))

    def cdf(self, value):
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class OwnBare(OwnGaussian):
    def distribution(self, outputs, noise_scale, **_):
        return Bare(outputs, noise_scale)


@dataclass(frozen=True, eq=False)
class OwnExponential(Likelihood):
    def distribution(self, outputs, **_):
        return dist.Exponential((-outputs).exp())


@dataclass(frozen=True, eq=False)
class OwnLogNormal(Likelihood):
    def distribution(self, outputs, **_):
        return dist.LogNormal(outputs, 0.5)


@dataclass(frozen=True, eq=False)
class OwnBeta(Likelihood):
    def distribution(self, outputs, **_):
        mean = torch.sigmoid(outputs)
        return dist.Beta(3 * mean, 3 * (1 - mean))


@dataclass(frozen=True, eq=False)
class OwnMultivariate(Likelihood):
    """With a given scale of the noise and correlation 0.5."""

    independent_targets = False

    def distribution(self, outputs, **_):
        covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).to(outputs)
        return dist.MultivariateNormal(outputs, covariance)


PAIRS: dict[str, tuple[Likelihood, Likelihood, int]] = {  # own, the library's, number of targets
    "count": (OwnPoisson(), lk.Poisson(), 1),
    "counts": (OwnPoisson(), lk.Poisson(), 2),
    "numbers": (OwnGaussian(), lk.Gaussian(), 2),
    "noise of its own": (OwnHeteroscedastic(), lk.HeteroscedasticGaussian(), 2),
    "labels": (OwnBernoulli(), lk.Bernoulli(), 2),
    "classes": (OwnCategorical(3), lk.Categorical(3), 1),
    "tied": (OwnMultivariate(), lk.MultivariateGaussian(((1.0, 0.5), (0.5, 1.0))), 2),
}


def data(name: str, num_rows: int = N) -> tuple[Tensor, Tensor]:
    own, _, num_targets = PAIRS[name]
    random = generator(1)
    features = torch.randn(num_rows, 3, generator=random, dtype=torch.float64)
    signal = features[:, :num_targets]
    numbers = signal + 0.5 * torch.randn(num_rows, num_targets, generator=random, dtype=torch.float64)
    if own.is_discrete:
        return features, (numbers[:, 0] > -0.5).long() + (numbers[:, 0] > 0.5).long()
    if own.is_binary:
        numbers = (numbers > 0).double()
    if own.is_count:
        numbers = numbers.exp().round()
    return features, numbers if num_targets > 1 else numbers[:, 0]


def noise_of(likelihood: Likelihood, num_targets: int) -> dict[str, Tensor]:
    shapes = {name: prior.event_shape for name, prior in likelihood.sites((num_targets,)).items()}
    return {name: torch.full(shape, 0.7, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_equal_closed_forms(name: str) -> None:
    own, closed, num_targets = PAIRS[name]
    targets = own.check_targets(data(name, 7)[1])
    assert torch.equal(targets, closed.check_targets(data(name, 7)[1]))
    num_outputs = own.num_outputs((num_targets,))
    assert num_outputs == closed.num_outputs((num_targets,)) and not own.independent_outputs
    draws = torch.randn(4, 7, num_outputs, generator=generator(2), dtype=torch.float64)
    noise = noise_of(own, num_targets)
    torch.testing.assert_close(
        own.log_prob(draws, targets, **noise), closed.log_prob(draws, targets, **noise)
    )
    shaped = {key: value.expand(4, 1, *value.shape) for key, value in noise.items()}
    for found, right in zip(
        own.expected_derivatives(draws, targets, **shaped),
        closed.expected_derivatives(draws, targets, **shaped),
        strict=True,
    ):
        torch.testing.assert_close(found, right.expand_as(found), rtol=1e-9, atol=1e-9)
    if own.is_discrete:
        torch.testing.assert_close(own.class_probs(draws), closed.class_probs(draws))
    if own.is_binary:
        torch.testing.assert_close(own.label_probs(draws), closed.label_probs(draws))
    if name != "noise of its own":  # whose expected information is not the observed one
        found = own.information(draws[0], targets=targets, **noise)
        right = closed.information(draws[0], **noise)
        matrices = torch.stack(
            [right.times(row.expand(7, -1)) for row in torch.eye(num_outputs).double()], -1
        )
        torch.testing.assert_close(found.values, matrices, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own.output_curvature(draws[0], targets=targets, **noise), right.diagonal())


def test_observed_information_has_no_negative_eigenvalues_and_derivatives() -> None:
    own, targets = OwnHeteroscedastic(), data("noise of its own", 6)[1]
    outputs = torch.randn(6, 4, generator=generator(3), dtype=torch.float64)
    values = own.information(outputs, targets=targets).values
    hessian = -torch.stack(
        [
            torch.autograd.functional.hessian(
                lambda f, n=n: own.log_prob(f[None], targets[n : n + 1]).sum(), row
            )
            for n, row in enumerate(outputs)
        ]
    )
    assert float(np.linalg.eigvalsh(hessian).min()) < -0.1
    right = [(v * np.maximum(e, 0)) @ v.T for e, v in (np.linalg.eigh(matrix) for matrix in hessian.numpy())]
    np.testing.assert_allclose(values, np.stack(right), atol=1e-10)
    point = outputs[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: OwnPoisson().information(f, targets=torch.ones_like(f)).values, point
    )
    single = torch.tensor([[[-1.0]], [[2.0]]])
    torch.testing.assert_close(positive_part(single), single.clamp_min(0.0))
    with pytest.raises(TypeError, match=r"OwnPoisson.information: expected targets"):
        OwnPoisson().information(outputs)


@pytest.mark.parametrize("name", PAIRS)
def test_fits_equal_those_of_the_library(name: str) -> None:
    """Laplace's approximation has no randomness; the ELBO is estimated with draws, and the optimum has a tolerance."""
    own, closed, _ = PAIRS[name]
    rows = data(name, 60)
    fits = []
    for likelihood in (own, closed):
        layer = bll.LastLayer(likelihood, bll.priors.Normal(1.0), standardize=name != "tied")
        inference = bll.Laplace(bll.curvatures.Full())
        fits.append(bll.fit(layer, rows, inference=inference))
    found, right = fits
    if name == "noise of its own":  # observed and expected information differ in few rows
        assert found.log_evidence == pytest.approx(right.log_evidence, abs=1.0)
        return
    assert found.log_evidence == pytest.approx(right.log_evidence, abs=1e-4)
    predictions = [fit.predict(rows[0]) for fit in fits]
    for part in ("total", "aleatoric", "epistemic"):
        torch.testing.assert_close(
            *(getattr(prediction, part) for prediction in predictions), rtol=0.02, atol=1e-3
        )
    log_probs = [prediction.log_prob(rows[1]) for prediction in predictions]
    torch.testing.assert_close(*log_probs, rtol=0.0, atol=0.03)  # by points, and in closed form


@pytest.mark.parametrize("name", ["count", "numbers"])
@pytest.mark.thinned(2)
def test_variational_fits_equal_those_of_the_library(name: str) -> None:
    own, closed, _ = PAIRS[name]
    rows = data(name, 60)
    found, right = (bll.fit(bll.LastLayer(one, bll.priors.Normal(1.0)), rows) for one in (own, closed))
    # eight mirrored pairs of draws for each row: half of the pairs' squared moves, over the noise, vary by about a nat in all
    assert found.elbo == pytest.approx(right.elbo, abs=4)
    moved = (found.predict(rows[0]).mean - right.predict(rows[0]).mean).abs()
    assert float((moved / right.predict(rows[0]).epistemic.sqrt()).max()) < 0.5


def test_what_a_distribution_does_not_know_is_taken_from_draws() -> None:
    """4,096 draws for each row: errors of a distribution function of at most 0.5 / 64."""
    features, targets = data("numbers", 40)
    inference = bll.Laplace(bll.curvatures.Full())
    fits = [
        bll.fit(bll.LastLayer(one), (features, targets), inference=inference)
        for one in (OwnBare(), lk.Gaussian())
    ]
    drawn, closed = (fit.predict(features) for fit in fits)
    error = 4 * 0.5 / math.sqrt(4096)
    spread = closed.scale
    torch.testing.assert_close(drawn.cdf(targets), closed.cdf(targets), rtol=0.0, atol=error)
    torch.testing.assert_close(drawn.pit(targets), closed.pit(targets), rtol=0.0, atol=error)
    for q in (0.05, 0.5, 0.9):
        density = scipy.stats.norm.pdf(scipy.stats.norm.ppf(q))
        wrong = (drawn.quantile(q) - closed.quantile(q)).abs() / spread
        assert float(wrong.max()) < 4 * math.sqrt(q * (1 - q) / 4096) / density
    # errors of a variance of 4,096 draws: sqrt(2 / 4096) = 0.022; the epistemic part is not raised by those of the means
    assert float((drawn.aleatoric / closed.aleatoric - 1).abs().max()) < 4 * 0.023
    assert float((drawn.epistemic - closed.epistemic).abs().mean() / closed.aleatoric.mean()) < 0.02
    assert float(((drawn.mean - closed.mean).abs() / spread).max()) < 4 / 64
    assert float(((drawn.crps(targets) - closed.crps(targets)).abs() / spread).max()) < 4 / 64
    assert float((drawn.interval(0.8)[0] - closed.interval(0.8)[0]).abs().max() / spread.max()) < 0.1
    lower, upper = drawn.interval(0.8, kind="hdi")
    inside = closed.cdf(upper) - closed.cdf(lower)
    assert float((inside - 0.8).abs().max()) < 2 * error


def known(likelihood: Likelihood, outputs: list[float]) -> Any:
    """A prediction at outputs that are known nearly exactly."""
    posterior = bll.fit(
        bll.LastLayer(likelihood, bll.priors.Normal(1.0), standardize=False),
        (torch.zeros(3, 1), torch.full((3,), 0.5)),
        inference=bll.Laplace(bll.curvatures.Full()),
    ).posterior
    loc = torch.tensor(outputs, dtype=torch.float64)[:, None]
    return bll.prediction.predict_outputs(posterior, OutputGaussian(loc, torch.full_like(loc, 1e-4)))


@pytest.mark.parametrize("likelihood", [OwnExponential(), OwnLogNormal(), OwnBeta()], ids=repr)
def test_shortest_intervals_stay_in_the_support(likelihood: Likelihood) -> None:
    """Against SciPy: of all intervals with the probability none is shorter, and none leaves the support."""
    outputs = [-1.0, 0.3, 2.5]
    prediction = known(likelihood, outputs)
    lower, upper = (end.numpy() for end in prediction.interval(0.8, kind="hdi"))
    mean = 1 / (1 + np.exp(-np.array(outputs)))
    law = {
        "OwnExponential": scipy.stats.expon(scale=np.exp(outputs)),
        "OwnLogNormal": scipy.stats.lognorm(0.5, scale=np.exp(outputs)),
        "OwnBeta": scipy.stats.beta(3 * mean, 3 * (1 - mean)),
    }[type(likelihood).__name__]
    assert lower.min() >= 0 and (upper <= (1 if isinstance(likelihood, OwnBeta) else np.inf)).all()
    wrong = (
        4 * 0.4 / 64 if isinstance(likelihood, OwnBeta) else 1e-3
    )  # its distribution function is that of 4,096 draws
    np.testing.assert_allclose(law.cdf(upper) - law.cdf(lower), 0.8, atol=wrong)
    least, most = (
        (law.ppf(left + prob) - law.ppf(left)).min(0)
        for prob in (0.8 - wrong, 0.8 + wrong)
        for left in [np.linspace(0, 1 - prob, 2001)[:, None]]
    )
    assert (least <= upper - lower).all() and (upper - lower <= most).all()
    below, above = prediction.cdf(-1.0), prediction.cdf(1e9)
    assert bool((below == 0).all() and (above == 1).all())


@pytest.mark.parametrize("likelihood", [OwnLogNormal(), OwnBeta(), OwnExponential()], ids=repr)
def test_draws_of_distributions_with_any_parameters(likelihood: Likelihood) -> None:
    prediction = known(likelihood, [-1.0, 0.3, 2.5])
    draws = prediction.sample(20_000, seed=2)
    error = prediction.scale / math.sqrt(20_000)
    assert bool(((draws.mean(0) - prediction.mean).abs() < 4 * error).all())
    reached = (draws <= prediction.mean).double().mean(0)
    torch.testing.assert_close(reached, prediction.cdf(prediction.mean), rtol=0.0, atol=0.03)


def test_draws_follow_outputs_and_noise_together() -> None:
    """Of a Student-t whose noise is drawn: each draw has the noise of its own component."""
    features, targets = data("count", 60)
    fit = bll.fit(bll.LastLayer(lk.NegativeBinomial()), (features, targets), inference=bll.SVI(num_epochs=50))
    prediction = fit.predict(features[:3])
    draws = prediction.sample(20_000, seed=1)
    for value in (0.0, 1.0, 3.0):
        below = (draws <= value).double().mean(0)
        torch.testing.assert_close(below, prediction.cdf(value), rtol=0.0, atol=4 * 0.5 / math.sqrt(20_000))


def test_moments_of_tails_without_moments() -> None:
    class Cauchy(Likelihood):
        def distribution(self, outputs, **_):
            return dist.Cauchy(outputs, 1.0)

    prediction = known(Cauchy(), [0.0, 3.0])
    torch.testing.assert_close(
        prediction.quantile(0.75), torch.tensor([1.0, 4.0]).double(), atol=1e-2, rtol=0
    )


def test_targets_outside_the_support_are_refused_by_name() -> None:
    for likelihood, targets, message in (
        (
            OwnExponential(),
            [1.0, -2.0],
            r"OwnExponential: expected targets with a finite density.*got \[-2.0\] in row 1",
        ),
        (OwnBeta(), [0.3, 0.0], r"OwnBeta: .*got \[0.0\] in row 1"),
        (OwnBeta(), [0.3, 1.5], r"OwnBeta: .*got \[1.5\] in row 1"),
        (OwnPoisson(), [1.0, 1.5], "OwnPoisson: expected counts"),
        (OwnBernoulli(), [1.0, 2.0], r"OwnBernoulli: .*got \[2.0\] in row 1"),
        (OwnCategorical(), [0, 3], "OwnCategorical: expected labels from 0 to 2"),
        (OwnGaussian(), [0.0, math.nan], "OwnGaussian: expected real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood.check_targets(torch.tensor(targets))
    large = torch.tensor([1.0, 1e20])
    assert torch.equal(OwnGaussian().check_targets(large)[:, 0], large)  # they will be standardised
    assert torch.equal(OwnPoisson().check_targets(large)[:, 0], large)


def test_what_a_likelihood_says_of_itself_has_to_agree() -> None:
    class Uncounted(OwnPoisson):
        is_count = False

    class Squeezed(OwnPoisson):
        def distribution(self, outputs, **_):
            return dist.Poisson(outputs[..., 0].exp())

    with pytest.raises(ValueError, match=r"Uncounted: expected is_count = True for Poisson over"):
        Uncounted().check_targets(torch.ones(3))
    with pytest.raises(
        ValueError, match=r"Squeezed.distribution: expected batch shape .*keep the axis of the targets"
    ):
        Squeezed().check_targets(torch.ones(3))
    tied = Marginal(OwnMultivariate().law(torch.zeros(3, 2)))
    with pytest.raises(NotImplementedError, match="independent_targets = False"):
        tied.log_prob(torch.zeros(3, 2))


def test_a_likelihood_without_a_noise_scale_is_not_recalibrated() -> None:
    features, targets = data("count", 60)
    fit = bll.fit(bll.LastLayer(OwnPoisson()), (features, targets), inference=bll.SVI(num_epochs=5))
    with pytest.raises(
        TypeError, match=r"calibrate: expected .* got OwnPoisson\(\), which has no with_noise_times"
    ):
        bll.calibrate(fit, features, targets)


def test_checks_of_arguments_are_off_inside_and_on_again_outside() -> None:
    """Fits of all folds and scales at once run under vmap, in which such a check cannot run."""
    with pytest.raises(ValueError, match="Expected parameter"):
        dist.Poisson(torch.tensor(-1.0))
    features = torch.randn(20, 8, generator=generator(0))
    counts = torch.poisson(features[:, 0].exp(), generator=generator(1))
    fit = bll.fit(bll.LastLayer(OwnPoisson()), (features, counts), inference=bll.SVI(num_epochs=20))
    assert bool(fit.predict(features).mean.isfinite().all())

    def work(_: int) -> None:
        for _ in range(200):
            with without_validation():
                dist.Poisson(torch.tensor(-1.0))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with pytest.raises(ValueError, match="Expected parameter"):
        dist.Poisson(torch.tensor(-1.0))
    with isolated(0), pytest.raises(RuntimeError, match="inside"), without_validation():
        raise RuntimeError("inside")
    with pytest.raises(ValueError, match="Expected parameter"):
        dist.Poisson(torch.tensor(-1.0))


def test_exposure_reaches_a_distribution_that_takes_it() -> None:
    features, targets = data("count", 60)
    exposure = 1 + torch.rand(60, generator=generator(5), dtype=torch.float64)
    inference = bll.Laplace(bll.curvatures.Full())
    found, right = (
        bll.fit(
            bll.LastLayer(one, bll.priors.Normal(1.0)),
            (features, targets),
            inference=inference,
            exposure=exposure,
        )
        for one in (OwnPoisson(), lk.Poisson())
    )
    assert found.log_evidence == pytest.approx(right.log_evidence, abs=1e-4)
    draws = [fit.predict(features, exposure=exposure).sample(4000, seed=1).mean(0) for fit in (found, right)]
    scale = right.predict(features, exposure=exposure).scale
    assert float(((draws[0] - draws[1]).abs() / scale).max()) < 4 * math.sqrt(2 / 4000)
