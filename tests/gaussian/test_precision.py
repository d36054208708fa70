"""Precisions and expected quadratic forms of every structure of covariance, against dense matrices."""

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from bll_pyro.gaussian import (
    BlockDiagonal,
    CentredDiagonal,
    Delta,
    Dense,
    Diagonal,
    LowRank,
    MatrixNormal,
    WeightGaussian,
)
from bll_pyro.gaussian.precision import (
    expected_quadratic,
    independent_outputs,
    num_precision_numbers,
    precision,
    quadratic,
    times,
)

K, P = 3, 4


def gaussians() -> dict[str, tuple[WeightGaussian, Tensor]]:
    """One of each kind, with its covariance ``[K P, K P]`` written out from the definition of the kind."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def tril(*shape: int) -> Tensor:
        lower = normal(*shape).tril(-1) * 0.5
        return lower + torch.diag_embed(normal(*shape[:-1]).exp())

    loc, scale = normal(K, P), normal(K, P).exp()
    mixing = torch.linalg.qr(normal(K, K)).Q.contiguous()
    blocks, factor, square = tril(K, P, P), normal(K, P, 2), normal(K, P, K * P)
    rows, columns = tril(K, K), tril(P, P)
    direction, shift = normal(K, P), normal(P - 1)
    big = torch.kron(mixing, torch.eye(P).double())
    shear = torch.eye(P).double()
    shear[-1, :-1] = -shift  # b = beta - shift'w
    centred = [
        shear @ torch.diag(s) @ torch.linalg.inv(torch.eye(P) + torch.outer(z, z)) @ torch.diag(s) @ shear.T
        for s, z in zip(scale, direction)
    ]
    flat = square.reshape(K * P, K * P)
    return {
        "diagonal": (Diagonal(loc, scale), torch.diag(scale.flatten() ** 2)),
        "mixed": (Diagonal(loc, scale, mixing), big @ torch.diag(scale.flatten() ** 2) @ big.T),
        "blocks": (BlockDiagonal(loc, blocks), torch.block_diag(*(t @ t.T for t in blocks))),
        "low rank": (
            LowRank(loc, scale, factor),
            torch.diag(scale.flatten() ** 2) + factor.reshape(K * P, 2) @ factor.reshape(K * P, 2).T,
        ),
        "matrix normal": (MatrixNormal(loc, rows, columns), torch.kron(rows @ rows.T, columns @ columns.T)),
        "dense": (Dense(loc, square, torch.linalg.slogdet(flat).logabsdet), flat @ flat.T),
        "centred": (CentredDiagonal(loc, scale, direction, shift), torch.block_diag(*centred)),
    }


NAMES = list(gaussians())


def dense(matrix: Tensor) -> Tensor:
    """A precision in any form as ``[K P, K P]``."""
    if matrix.dim() == 2:
        return torch.diag(matrix.flatten())
    return torch.block_diag(*matrix) if matrix.dim() == 3 else matrix.reshape(K * P, K * P)


@pytest.mark.parametrize("name", NAMES)
def test_precision_inverts_the_covariance(name: str) -> None:
    weights, covariance = gaussians()[name]
    found = precision(weights)
    assert found.numel() == num_precision_numbers(weights)
    torch.testing.assert_close(dense(found) @ covariance, torch.eye(K * P).double(), rtol=0.0, atol=1e-9)
    assert (found.dim() == 4) != independent_outputs(weights)
    vectors = torch.randn(5, K, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(times(found, vectors).flatten(1), vectors.flatten(1) @ dense(found))
    torch.testing.assert_close(quadratic(found, vectors), (vectors * times(found, vectors)).sum((1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_scales_draws_and_densities_follow_from_the_covariance(name: str) -> None:
    weights, covariance = gaussians()[name]
    design = torch.randn(6, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = torch.stack([torch.kron(torch.eye(K).double(), h) for h in design])  # [N, K, K P]
    outputs = weights.outputs(design)
    torch.testing.assert_close(outputs.covariance, rows @ covariance @ rows.mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs.mean, design @ weights.loc.mT)
    torch.testing.assert_close(weights.marginal_scale().flatten(), covariance.diagonal().sqrt())
    num_draws = 20_000
    draws = weights.rsample(num_draws, torch.Generator().manual_seed(3)).flatten(1)
    variances = covariance.diagonal()
    tolerance = 5.5 * ((torch.outer(variances, variances) + covariance**2) / num_draws).sqrt()
    assert bool(((torch.cov(draws.T) - covariance).abs() < tolerance).all())
    reference = multivariate_normal(weights.loc.flatten().numpy(), covariance.numpy())
    found = weights.log_prob(draws[:20].view(-1, K, P))
    torch.testing.assert_close(
        found, torch.as_tensor(reference.logpdf(draws[:20].numpy())), rtol=1e-8, atol=1e-8
    )
    assert float(weights.entropy()) == pytest.approx(reference.entropy(), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mixed", "centred")])
@pytest.mark.parametrize("form", ["diagonal", "blocks", "dense"])
def test_expected_quadratic(name: str, form: str) -> None:
    weights, covariance = gaussians()[name]
    matrix, center = precision(gaussians()[form][0]), torch.ones(K, P, dtype=torch.float64)
    shifted = (weights.loc - center).flatten()
    expected = shifted @ dense(matrix) @ shifted + (dense(matrix) @ covariance).trace()
    torch.testing.assert_close(expected_quadratic(matrix, weights, center), expected, rtol=1e-10, atol=0.0)
    point = Delta(weights.loc)
    torch.testing.assert_close(expected_quadratic(matrix, point, center), shifted @ dense(matrix) @ shifted)


def test_refusals() -> None:
    weights, _ = gaussians()["centred"]
    with pytest.raises(TypeError, match="got CentredDiagonal; use another guide"):
        expected_quadratic(precision(weights), weights, weights.loc)
    with pytest.raises(ValueError, match="has no precision"):
        precision(Delta(weights.loc))
