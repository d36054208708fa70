"""The Gaussian over all unknowns against one dense multivariate normal over (u, weights)."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from bll_pyro.gaussian import BlockDiagonal, Dense, Diagonal, LatentDistribution, LatentGaussian, flatten
from bll_pyro.gaussian.latents import unflatten
from bll_pyro.scope import generator, isolated

NUM_GLOBALS, NUM_OUTPUTS, NUM_COLUMNS = 2, 3, 4
NUM_WEIGHTS = NUM_OUTPUTS * NUM_COLUMNS
CASES = ["independent", "factored globals", "coupled", "no globals"]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def make(case: str) -> tuple[LatentGaussian, Tensor, Tensor]:
    """A Gaussian, and mean and covariance of (u, vec A) by its definition."""
    loc, u_loc = random(NUM_OUTPUTS, NUM_COLUMNS, seed=0), random(NUM_GLOBALS, seed=1)
    scale = random(NUM_OUTPUTS, NUM_COLUMNS, seed=2).abs() + 0.2
    u_scale = torch.tensor([0.5, 1.5], dtype=torch.float64)
    u_tril = torch.tensor([[0.5, 0.0], [-0.7, 1.2]], dtype=torch.float64)
    if case == "no globals":
        none = torch.zeros(0, dtype=torch.float64)
        return (
            LatentGaussian(Diagonal(loc, scale), none, none),
            loc.flatten(),
            torch.diag(scale.flatten() ** 2),
        )
    mean = torch.cat([u_loc, loc.flatten()])
    if case == "independent":
        covariance = torch.diag(torch.cat([u_scale, scale.flatten()]) ** 2)
        return LatentGaussian(Diagonal(loc, scale), u_loc, u_scale), mean, covariance
    if case == "factored globals":
        tril = random(NUM_OUTPUTS, NUM_COLUMNS, NUM_COLUMNS, seed=3).tril(-1) + torch.diag_embed(scale)
        covariance = torch.block_diag(u_tril @ u_tril.mT, *(tril @ tril.mT))
        return LatentGaussian(BlockDiagonal(loc, tril), u_loc, u_tril), mean, covariance
    factor, coupling = random(NUM_WEIGHTS, NUM_WEIGHTS, seed=4), random(NUM_WEIGHTS, NUM_GLOBALS, seed=5)
    top = torch.cat([u_tril, torch.zeros(NUM_GLOBALS, NUM_WEIGHTS, dtype=torch.float64)], 1)
    wide = torch.cat([top, torch.cat([coupling, factor], 1)])
    shape = (NUM_OUTPUTS, NUM_COLUMNS)
    weights = Dense(loc, factor.view(*shape, -1), torch.linalg.slogdet(factor).logabsdet)
    return LatentGaussian(weights, u_loc, u_tril, coupling.view(*shape, -1)), mean, wide @ wide.mT


def joined(u: Tensor, weights: Tensor) -> Tensor:
    return torch.cat([u, weights.flatten(1)], 1)


@pytest.mark.parametrize("case", CASES)
class TestAgainstDense:
    def test_log_prob_and_entropy(self, case: str) -> None:
        latents, mean, covariance = make(case)
        reference = stats.multivariate_normal(mean.numpy(), covariance.numpy())
        values = mean + random(6, len(mean), seed=6)
        u, weights = values[:, : latents.num_globals], values[:, latents.num_globals :]
        log_prob = latents.log_prob(u, weights.view(-1, NUM_OUTPUTS, NUM_COLUMNS))
        np.testing.assert_allclose(log_prob.numpy(), reference.logpdf(values.numpy()), rtol=1e-9)
        assert float(latents.entropy()) == pytest.approx(float(reference.entropy()), abs=1e-9)

    def test_marginals(self, case: str) -> None:
        latents, _, covariance = make(case)
        num = latents.num_globals
        torch.testing.assert_close(latents.globals_scale(), covariance.diagonal()[:num].sqrt())
        expected = covariance.diagonal()[num:].sqrt().view(NUM_OUTPUTS, NUM_COLUMNS)
        torch.testing.assert_close(latents.marginal_scale(), expected)
        marginal = latents.marginal_weights()
        torch.testing.assert_close(marginal.marginal_scale(), expected)
        values = marginal.loc + random(5, NUM_OUTPUTS, NUM_COLUMNS, seed=7)
        reference = stats.multivariate_normal(marginal.loc.flatten().numpy(), covariance[num:, num:].numpy())
        np.testing.assert_allclose(
            marginal.log_prob(values).numpy(), reference.logpdf(values.flatten(1).numpy()), rtol=1e-9
        )

    def test_given_is_the_conditional(self, case: str) -> None:
        """u at given normals, and the conditional Gaussian of the weights by the formula for partitioned normals."""
        latents, mean, covariance = make(case)
        num = latents.num_globals
        noise = random(num, seed=8)
        u, weights = latents.given(noise)
        factor = torch.linalg.cholesky(covariance[:num, :num])
        torch.testing.assert_close(u, mean[:num] + factor @ noise)
        gain = covariance[num:, :num] @ torch.linalg.inv(covariance[:num, :num])
        torch.testing.assert_close(weights.loc.flatten(), mean[num:] + gain @ (u - mean[:num]))
        expected = covariance[num:, num:] - gain @ covariance[:num, num:]
        torch.testing.assert_close(weights.marginal_scale().flatten(), expected.diagonal().sqrt())

    @pytest.mark.parametrize("num", [0, 1, 2])
    def test_the_first_globals_alone(self, case: str, num: int) -> None:
        """Rows and columns of the others leave mean and covariance, and nothing else changes."""
        latents, mean, covariance = make(case)
        num = min(num, latents.num_globals)
        kept = [*range(num), *range(latents.num_globals, len(mean))]
        u, weights = latents.rsample(5, generator(6))
        found = latents.first(num).log_prob(u[:, :num], weights)
        marginal = stats.multivariate_normal(mean[kept].numpy(), covariance[kept][:, kept].numpy())
        expected = marginal.logpdf(joined(u[:, :num], weights).numpy())
        assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_moments_of_draws(self, case: str) -> None:
        latents, mean, covariance = make(case)
        num_draws = 40_000
        draws = joined(*latents.rsample(num_draws, generator(9)))
        variance = covariance.diagonal()
        # in standard errors; the largest of about 200 standard normals exceeds 5 with probability 1e-4
        assert float(((draws.mean(0) - mean) / (variance / num_draws).sqrt()).abs().max()) < 5
        spread = ((variance[:, None] * variance + covariance.square()) / num_draws).sqrt()
        assert float(((draws.mT.cov() - covariance) / spread).abs().max()) < 5

    def test_detach_copies(self, case: str) -> None:
        latents, _, _ = make(case)
        frozen = latents.detach()
        torch.testing.assert_close(frozen.entropy(), latents.entropy())
        assert frozen.globals_loc.data_ptr() != latents.globals_loc.data_ptr() or not latents.num_globals
        assert frozen.weights.loc.data_ptr() != latents.weights.loc.data_ptr()
        assert (frozen.coupling is None) == (latents.coupling is None)


@pytest.mark.parametrize("num_features", [NUM_COLUMNS, NUM_COLUMNS - 1], ids=["no bias", "bias"])
@pytest.mark.parametrize("case", CASES)
class TestAsPyroDistribution:
    def test_log_prob_in_the_order_of_the_latent_vector(self, case: str, num_features: int) -> None:
        latents, mean, covariance = make(case)
        flat = LatentDistribution(latents, num_features)
        num = latents.num_globals
        grid = torch.arange(NUM_WEIGHTS).view(NUM_OUTPUTS, NUM_COLUMNS) + num
        order = torch.cat(
            [torch.arange(num), grid[:, :num_features].flatten(), grid[:, num_features:].flatten()]
        )
        reference = dist.MultivariateNormal(mean[order], covariance[order][:, order])
        values = reference.sample((7,))
        torch.testing.assert_close(flat.log_prob(values), reference.log_prob(values))
        torch.testing.assert_close(flat.mean, reference.mean)
        torch.testing.assert_close(flat.variance, reference.variance)

    def test_expand_makes_independent_copies(self, case: str, num_features: int) -> None:
        latents, _, _ = make(case)
        flat = LatentDistribution(latents, num_features).expand((3, 1))
        assert flat.batch_shape == (3, 1)
        with isolated(seed=0):
            draws = flat.rsample((5,))
        assert draws.shape == (5, 3, 1, *flat.event_shape)
        assert len(draws.reshape(15, -1).unique(dim=0)) == 15
        single = LatentDistribution(latents, num_features)
        torch.testing.assert_close(flat.log_prob(draws), single.log_prob(draws))
        assert flat.log_prob(draws[0, 0, 0]).shape == (3, 1)
        assert flat.mean.shape == flat.variance.shape == (3, 1, *flat.event_shape)

    def test_unflatten_is_the_inverse(self, case: str, num_features: int) -> None:
        u, weights = random(2, 5, NUM_GLOBALS, seed=1), random(2, 5, NUM_OUTPUTS, NUM_COLUMNS, seed=2)
        vector = flatten(u, weights, num_features)
        assert vector.shape == (2, 5, NUM_GLOBALS + NUM_WEIGHTS)
        back = unflatten(vector, NUM_GLOBALS, NUM_OUTPUTS, num_features)
        torch.testing.assert_close(back[0], u)
        torch.testing.assert_close(back[1], weights)
