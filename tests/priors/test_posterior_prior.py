"""The joint prior of weight and bias as a Pyro program: its sites make up the Gaussian that it holds."""

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.gaussian import BlockDiagonal, Dense, Diagonal, WeightGaussian
from bll_pyro.scope import isolated

K, D = 2, 3
RANDOM = torch.Generator().manual_seed(0)
LOC = torch.randn(K, D + 1, generator=RANDOM, dtype=torch.float64)
ROOT = torch.randn(K * (D + 1), K * (D + 1), generator=RANDOM, dtype=torch.float64)
TRIL = torch.randn(K, D + 1, D + 1, generator=RANDOM, dtype=torch.float64).tril(-1) + 1.5 * torch.eye(D + 1)
ROTATION = torch.linalg.qr(torch.randn(D, D, generator=RANDOM, dtype=torch.float64)).Q
GAUSSIANS = [
    Diagonal(LOC, LOC.exp()),
    BlockDiagonal(LOC, TRIL.double()),
    Dense(LOC, ROOT.reshape(K, D + 1, -1), torch.linalg.slogdet(ROOT).logabsdet),
]


def prior_of(weights: WeightGaussian, rotation: Tensor | None = None) -> bll.priors.Posterior:
    ones, zeros = torch.ones(D).double(), torch.zeros(D).double()
    return bll.priors.Posterior.of(weights, Frame(zeros, ones, zeros[:K], ones[:K], rotation))


def model_of(prior: bll.priors.Posterior) -> bll.Model:
    return bll.Model(bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=1.0), prior), D, (K,))


@pytest.mark.parametrize("weights", GAUSSIANS)
def test_sites_multiply_to_the_joint_density(weights: WeightGaussian) -> None:
    prior, features = prior_of(weights), torch.zeros(2, D, dtype=torch.float64)
    with isolated(1, torch.float64):
        trace = poutine.trace(model_of(prior)).get_trace(features)
    trace.compute_log_prob()
    sites = {name: trace.nodes[name]["value"] for name in ("weight", "bias")}
    values = torch.cat([sites["weight"], sites["bias"][:, None]], -1)
    total = trace.nodes["weight"]["log_prob_sum"] + trace.nodes["bias"]["log_prob_sum"]
    torch.testing.assert_close(total, weights.log_prob(values[None])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", GAUSSIANS)
def test_prior_draws_have_its_moments(weights: WeightGaussian) -> None:
    model, num_draws = model_of(prior_of(weights)), 20_000
    with isolated(2, torch.float64), pyro.plate("draws", num_draws, dim=-2):
        trace = poutine.trace(model).get_trace(torch.zeros(2, D, dtype=torch.float64))
    drawn = torch.cat([trace.nodes["weight"]["value"], trace.nodes["bias"]["value"][..., None]], -1).squeeze(
        1
    )
    assert drawn.shape == (num_draws, K, D + 1)
    flat, size = drawn.flatten(1), K * (D + 1)
    eye = torch.eye(D + 1, dtype=torch.float64)
    covariance = torch.linalg.inv(_dense(bll.gaussian.precision.precision(weights), size))
    variances = covariance.diagonal()
    tolerance = 5.5 * ((torch.outer(variances, variances) + covariance**2) / num_draws).sqrt()
    assert bool(((torch.cov(flat.T) - covariance).abs() < tolerance).all())
    assert bool(((flat.mean(0) - LOC.flatten()).abs() < 5 * (variances / num_draws).sqrt()).all())
    torch.testing.assert_close(weights.outputs(eye).variance.mT.flatten(), variances)


def _dense(matrix: Tensor, size: int) -> Tensor:
    if matrix.dim() == 2:
        return torch.diag(matrix.flatten())
    return torch.block_diag(*matrix) if matrix.dim() == 3 else matrix.reshape(size, size)


@pytest.mark.parametrize("weights", GAUSSIANS)
def test_density_of_weights_in_plain_axes(weights: WeightGaussian) -> None:
    """Weights as a user sees them have, in the axes of the frame, the density of its Gaussian."""
    prior = prior_of(weights, ROTATION)
    values = torch.randn(5, K, D + 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shown = prior.frame.split(values)
    assert not torch.allclose(shown["weight"], values[..., :D])
    density = prior.log_prob(prior.frame.join(shown["weight"], shown["bias"]))
    torch.testing.assert_close(density, weights.log_prob(values), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_pyros_own_elbo_agrees_with_output_space() -> None:
    """The program and the closed form are one prior: two ways to the same bound."""
    random = torch.Generator().manual_seed(4)
    features = torch.randn(30, D, generator=random, dtype=torch.float64)
    targets = torch.randn(30, K, generator=random, dtype=torch.float64)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=1.0), prior_of(GAUSSIANS[1]))
    evidence = bll.fit(layer, (features, targets), inference=bll.Exact()).log_evidence
    for output_space in (True, False):
        svi = bll.SVI(guide=bll.guides.FullRank(), num_epochs=300, output_space=output_space)
        bound = bll.fit(layer, (features, targets), inference=svi).elbo
        assert bound == pytest.approx(evidence, abs=0.1 if output_space else 1.0)


def test_single_weights_have_no_distribution() -> None:
    prior = prior_of(GAUSSIANS[0])
    with pytest.raises(TypeError, match=r"bll\.SVI\(\) or bll\.Exact\(\)"):
        prior.distribution((K, D))
    with pytest.raises(ValueError, match=r"shape \[2, 3\].*got \[5, 3\]"):
        prior.check((5, D))


def test_too_large_a_precision_is_refused() -> None:
    large = Diagonal(torch.zeros(40, 2001), torch.ones(40, 2001), torch.eye(40))
    with pytest.raises(ValueError, match=r"fits in 8 GiB.*takes 95\..*guides\.BlockDiagonal"):
        prior_of(large)
