"""Expected log densities against brute force, their gradients against differences, learned scales against a search."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from prior_cases import ELEMENTWISE, PRIORS, D, K, hyper_of
from scipy.optimize import minimize_scalar
from torch import Tensor

from bll_pyro import priors
from bll_pyro.gaussian.strata import stratified_square, stratum_moments
from bll_pyro.priors.horseshoe import LogSumOfBells
from bll_pyro.scope import isolated


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Constants are made in torch's default precision, as in a fit on double-precision features."""
    with isolated(dtype=torch.float64):
        yield


NUM_POINTS = 40_000
MIXTURES = [name for name, prior in PRIORS.items() if isinstance(prior, priors.ScaleMixturePrior)]
EXACT = [name for name, prior in ELEMENTWISE.items() if not prior.needs_noise and name not in MIXTURES]
NOISY = [name for name, prior in ELEMENTWISE.items() if prior.needs_noise]
POSTERIORS = [(0.0, 0.02), (0.3, 0.05), (1.5, 0.5)]  # size of the means, standard deviation


def marginals(size: float, spread: float) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    loc = size * torch.randn(K, D, generator=random, dtype=torch.float64)
    return loc, spread * (0.5 + torch.rand(K, D, generator=random, dtype=torch.float64))


def brute_force(prior: priors.Prior, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor]) -> Tensor:
    """``E[log p]`` by the midpoints of 40,000 equally probable intervals."""
    points = torch.special.ndtri((torch.arange(NUM_POINTS, dtype=torch.float64) + 0.5) / NUM_POINTS)
    values = loc + scale * points[:, None, None]
    return prior.distribution((K, D), **hyper).log_prob(values).mean(0)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("name", EXACT)
def test_closed_forms(name: str, posterior: tuple[float, float]) -> None:
    prior, hyper = PRIORS[name], hyper_of(PRIORS[name])
    loc, scale = marginals(*posterior)
    expected = brute_force(prior, loc, scale, hyper).sum()
    torch.testing.assert_close(prior.expected_log_prob(loc, scale, **hyper), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.thinned(3)
def test_bound_of_scale_mixtures(name: str, posterior: tuple[float, float]) -> None:
    """Below the expectation, by at most 0.15 nats a weight, and without limit nearer with more strata."""
    prior, hyper = PRIORS[name], hyper_of(PRIORS[name])
    assert isinstance(prior, priors.ScaleMixturePrior)
    loc, scale = marginals(*posterior)
    centre = 0.0 if prior.loc is None else prior.loc.double()
    expected = brute_force(prior, loc, scale, hyper).sum()
    actual = prior.expected_log_prob(loc, scale, **hyper)
    assert float(expected - actual) < 0.15 * K * D
    assert float(actual - expected) < 1e-4 * K * D  # the error of the brute force
    finer = prior.log_prob_of_square(stratified_square(loc - centre, scale, 512), **hyper).sum() / 512
    torch.testing.assert_close(finer, expected, rtol=0, atol=2e-3 * K * D)
    assert float(finer) >= float(actual)


@pytest.mark.parametrize("name", NOISY)
def test_draws_average_to_the_expectation(name: str) -> None:
    prior, hyper, num_draws = PRIORS[name], hyper_of(PRIORS[name]), 4_000
    loc, scale = marginals(1.5, 0.5)
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(num_draws, K, D, generator=random, dtype=torch.float64)
    values = torch.stack([prior.expected_log_prob(loc, scale, draw, **hyper) for draw in noise])
    error = float(values.std()) / math.sqrt(num_draws)
    assert float(values.mean()) == pytest.approx(
        float(brute_force(prior, loc, scale, hyper).sum()), abs=4 * error
    )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    prior, hyper = PRIORS[name], hyper_of(PRIORS[name])
    loc, scale = marginals(0.7, 0.3)
    noise = torch.randn(K, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names = list(hyper)

    def value(loc: Tensor, scale: Tensor, *hyper: Tensor) -> Tensor:
        return prior.expected_log_prob(loc, scale, noise, **dict(zip(names, hyper, strict=True)))

    inputs = [tensor.clone().requires_grad_() for tensor in (loc, scale, *hyper.values())]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_point_has_its_log_density(name: str) -> None:
    """At scale 0 (MAP), at the centre itself too, where squares vanish."""
    prior, hyper = PRIORS[name], hyper_of(PRIORS[name])
    centre = getattr(prior, "loc", None)
    at_centre = torch.zeros(K, D, dtype=torch.float64) if centre is None else centre.double()
    for loc in (marginals(0.7, 0.3)[0], at_centre):
        loc = loc.clone().requires_grad_()
        actual = prior.expected_log_prob(loc, torch.zeros_like(loc), torch.ones_like(loc), **hyper)
        torch.testing.assert_close(
            actual, prior.distribution((K, D), **hyper).log_prob(loc).sum(), rtol=1e-8, atol=1e-8
        )
        assert bool(torch.isfinite(torch.autograd.grad(actual, loc)[0]).all())


@pytest.mark.parametrize("name", [n for n, p in PRIORS.items() if p.learned_start((K, D))])
def test_learned_scale_is_the_maximum(name: str) -> None:
    prior = PRIORS[name]
    for size, spread in [*POSTERIORS, (1e-3, 1e-5), (50.0, 1e-3)]:
        loc, scale = marginals(size, spread)
        loc[0] *= 5  # outputs differ in size
        learned = prior.learned_update(loc, scale)["tau"]
        for k in range(learned.numel()):

            def loss(
                log_tau: float,
                k: int = k,
                loc: Tensor = loc,
                scale: Tensor = scale,
                learned: Tensor = learned,
            ) -> float:
                tau = learned.clone()
                tau.view(-1)[k] = math.exp(log_tau)
                return -float(prior.expected_log_prob(loc, scale, tau=tau))

            middle = math.log(float(learned.view(-1)[k]))
            best = minimize_scalar(
                loss, bounds=(middle - 4, middle + 4), method="bounded", options={"xatol": 1e-7}
            )
            assert math.exp(best.x) == pytest.approx(float(learned.view(-1)[k]), rel=2e-4)


def test_scales_of_all_sizes_are_learned_in_single_precision() -> None:
    prior = priors.StudentT()
    torch.set_default_dtype(torch.float32)
    for size in (1e-12, 1e-4, 1.0, 1e6):
        loc = size * torch.randn(20, 50, generator=torch.Generator().manual_seed(3))
        tau = float(prior.learned_update(loc, 0.1 * loc.abs())["tau"])
        assert 0.8 * size < tau < 2 * size
    assert 0 < float(prior.learned_update(torch.zeros(2, 3), torch.zeros(2, 3))["tau"]) < 1e-10


@pytest.mark.parametrize("num_strata", [1, 2, 5, 8])
def test_moments_of_strata(num_strata: int) -> None:
    normals = torch.special.ndtri((torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000)
    groups = normals.view(num_strata, -1)
    mean, square = stratum_moments(num_strata)
    torch.testing.assert_close(mean, groups.mean(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(square, groups.square().mean(1), rtol=0, atol=1e-4)
    # for w = 0.3 + 0.2 e the strata's squares average to 0.3^2 + 0.2^2
    squares = stratified_square(torch.tensor(0.3), torch.tensor(0.2), num_strata)
    assert squares.shape == (num_strata,)
    assert float(squares.mean()) == pytest.approx(0.13, rel=1e-5)


def test_log_sum_of_bells_is_logsumexp() -> None:
    random = torch.Generator().manual_seed(4)
    square, heights, rates = (
        torch.rand(shape, generator=random, dtype=torch.float64) for shape in ((4, 3, 2), (7,), (7,))
    )
    inputs = [square.requires_grad_(), heights.requires_grad_(), rates.requires_grad_()]
    expected = torch.logsumexp(heights - square[..., None] * rates, -1)
    actual = LogSumOfBells.apply(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(4, 3, 2, generator=random, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_probability_of_the_slab_is_bayes_rule() -> None:
    prior = priors.SpikeAndSlab(0.1, 2.0, 0.2)
    weight = np.array([[0.0, 0.2, 3.0]])
    from scipy.stats import norm

    free, bound = 0.2 * norm.pdf(weight, 0, 2.0), 0.8 * norm.pdf(weight, 0, 0.1)
    actual = prior.slab_probability(torch.as_tensor(weight)).numpy()
    np.testing.assert_allclose(actual, free / (free + bound), rtol=1e-5)
