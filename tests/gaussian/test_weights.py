"""Every Gaussian over weights against one dense multivariate normal whose covariance is written out by its definition."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.gaussian import WeightGaussian
from bll_pyro.scope import generator

NUM_OUTPUTS, NUM_COLUMNS, NUM_ROWS = 3, 4, 5
SIZE = NUM_OUTPUTS * NUM_COLUMNS
CASES = ["diagonal", "mixed diagonal", "block-diagonal", "low-rank", "matrix-normal", "dense"]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def random_tril(*batch: int, size: int, seed: int) -> Tensor:
    tril = random(*batch, size, size, seed=seed).tril(-1)
    return tril + torch.diag_embed(random(*batch, size, seed=seed + 1).abs() + 0.3)


def make(case: str) -> tuple[WeightGaussian, Tensor]:
    """A Gaussian and the covariance ``[K P, K P]`` of its weights, row by row, as the docstring of its class says."""
    loc = random(NUM_OUTPUTS, NUM_COLUMNS, seed=0)
    scale = random(NUM_OUTPUTS, NUM_COLUMNS, seed=1).abs() + 0.2
    flat = scale.flatten()
    if case == "diagonal":
        return gaussian.Diagonal(loc, scale), torch.diag(flat**2)
    if case == "mixed diagonal":
        mixing = torch.linalg.qr(random(NUM_OUTPUTS, NUM_OUTPUTS, seed=2)).Q.contiguous()
        wide = torch.kron(mixing, torch.eye(NUM_COLUMNS, dtype=torch.float64))
        return gaussian.Diagonal(loc, scale, mixing), wide @ torch.diag(flat**2) @ wide.mT
    if case == "block-diagonal":
        tril = random_tril(NUM_OUTPUTS, size=NUM_COLUMNS, seed=3)
        return gaussian.BlockDiagonal(loc, tril), torch.block_diag(*(tril @ tril.mT))
    if case == "low-rank":
        factor = random(NUM_OUTPUTS, NUM_COLUMNS, 2, seed=4)
        wide = factor.reshape(SIZE, 2)
        return gaussian.LowRank(loc, scale, factor), torch.diag(flat**2) + wide @ wide.mT
    if case == "matrix-normal":
        rows, columns = random_tril(size=NUM_OUTPUTS, seed=5), random_tril(size=NUM_COLUMNS, seed=7)
        return gaussian.MatrixNormal(loc, rows, columns), torch.kron(rows @ rows.mT, columns @ columns.mT)
    factor = random(SIZE, SIZE, seed=9)  # any square factor, triangular or not
    log_det = torch.linalg.slogdet(factor).logabsdet
    dense = gaussian.Dense(loc, factor.view(NUM_OUTPUTS, NUM_COLUMNS, SIZE), log_det)
    return dense, factor @ factor.mT


def wide_design(design: Tensor) -> Tensor:
    """Linear map ``[N, K, K P]`` from all weights to the outputs of each row."""
    return torch.stack([torch.kron(torch.eye(NUM_OUTPUTS, dtype=torch.float64), row) for row in design])


@pytest.fixture
def design() -> Tensor:
    return random(NUM_ROWS, NUM_COLUMNS, seed=20)


@pytest.mark.parametrize("case", CASES)
class TestAgainstDense:
    def test_outputs(self, case: str, design: Tensor) -> None:
        weights, covariance = make(case)
        outputs, wide = weights.outputs(design), wide_design(design)
        expected = wide @ covariance @ wide.mT
        torch.testing.assert_close(outputs.mean, (wide @ weights.loc.flatten()))
        torch.testing.assert_close(outputs.covariance, expected)
        torch.testing.assert_close(outputs.variance, expected.diagonal(dim1=-2, dim2=-1))

    def test_marginal_scale(self, case: str, design: Tensor) -> None:
        weights, covariance = make(case)
        torch.testing.assert_close(weights.marginal_scale().flatten(), covariance.diagonal().sqrt())

    def test_log_prob(self, case: str, design: Tensor) -> None:
        weights, covariance = make(case)
        values = weights.loc + random(6, NUM_OUTPUTS, NUM_COLUMNS, seed=21)
        expected = stats.multivariate_normal(weights.loc.flatten().numpy(), covariance.numpy()).logpdf(
            values.flatten(1).numpy()
        )
        np.testing.assert_allclose(weights.log_prob(values).numpy(), expected, rtol=1e-9)

    def test_entropy(self, case: str, design: Tensor) -> None:
        weights, covariance = make(case)
        expected = stats.multivariate_normal(np.zeros(SIZE), covariance.numpy()).entropy()
        assert float(weights.entropy()) == pytest.approx(float(expected), abs=1e-9)

    def test_moments_of_draws(self, case: str, design: Tensor) -> None:
        weights, covariance = make(case)
        num_draws = 40_000
        draws = weights.rsample(num_draws, generator(3)).flatten(1)
        # in units of the standard errors: of a mean sqrt(c_ii / S), of a covariance sqrt((c_ii c_jj + c_ij^2) / S);
        # the largest of 144 standard normals exceeds 5 with probability 8e-5
        variance = covariance.diagonal()
        error = (draws.mean(0) - weights.loc.flatten()) / (variance / num_draws).sqrt()
        assert float(error.abs().max()) < 5
        spread = ((variance[:, None] * variance + covariance.square()) / num_draws).sqrt()
        assert float(((draws.mT.cov() - covariance) / spread).abs().max()) < 5

    def test_draws_are_differentiable_and_repeatable(self, case: str, design: Tensor) -> None:
        weights, _ = make(case)
        parts = {k: v.clone().requires_grad_() for k, v in weights.tensors.items()}
        again = type(weights)(**parts)
        draws = again.rsample(4, generator(5))
        torch.testing.assert_close(draws, weights.rsample(4, generator(5)))
        draws.square().sum().backward()
        for name, part in parts.items():
            if name != "log_det":  # draws do not depend on it
                assert part.grad is not None, name
                assert float(part.grad.abs().sum()) > 0, name

    def test_detach_copies(self, case: str, design: Tensor) -> None:
        weights, _ = make(case)
        parts = {k: v.clone().requires_grad_() for k, v in weights.tensors.items()}
        frozen = type(weights)(**parts).detach()
        assert frozen.tensors.keys() == parts.keys()
        for name, part in parts.items():
            assert not frozen.tensors[name].requires_grad
            with torch.no_grad():
                part.zero_()
            torch.testing.assert_close(frozen.tensors[name], weights.tensors[name])


def test_row_of_zeros_has_finite_slope() -> None:
    """The standard deviation of an output is 0 there; its gradient must not be infinite or NaN."""
    for case in CASES:
        weights, _ = make(case)
        parts = {k: v.clone().requires_grad_() for k, v in weights.tensors.items()}
        outputs = type(weights)(**parts).outputs(torch.zeros(2, NUM_COLUMNS, dtype=torch.float64))
        outputs.rsample(generator(0)).sum().backward()
        for name, part in parts.items():
            assert part.grad is None or bool(torch.isfinite(part.grad).all()), (case, name)


class TestDelta:
    def test_is_a_point(self, design: Tensor) -> None:
        point = gaussian.Delta(random(NUM_OUTPUTS, NUM_COLUMNS, seed=0))
        outputs = point.outputs(design)
        torch.testing.assert_close(outputs.mean, design @ point.loc.mT)
        assert float(outputs.variance.abs().max()) == 0.0
        assert float(outputs.covariance.abs().max()) == 0.0
        assert float(point.marginal_scale().abs().max()) == 0.0
        torch.testing.assert_close(point.rsample(3), point.loc.expand(3, -1, -1))
        assert float(point.entropy()) == 0.0

    def test_has_no_density(self) -> None:
        point = gaussian.Delta(torch.zeros(1, 2))
        with pytest.raises(ValueError, match=r"no density.*Diagonal"):
            point.log_prob(torch.zeros(3, 1, 2))


def test_matrix_normal_agrees_with_scipy() -> None:
    """A second reference for the order of rows and columns: SciPy's matrix-normal density."""
    weights, _ = make("matrix-normal")
    assert isinstance(weights, gaussian.MatrixNormal)
    values = random(4, NUM_OUTPUTS, NUM_COLUMNS, seed=22)
    expected = stats.matrix_normal(
        weights.loc.numpy(),
        (weights.row_tril @ weights.row_tril.mT).numpy(),
        (weights.column_tril @ weights.column_tril.mT).numpy(),
    ).logpdf(values.numpy())
    np.testing.assert_allclose(weights.log_prob(values).numpy(), expected, rtol=1e-9)


def test_kinds_know_every_class() -> None:
    names = {type(make(case)[0]).__name__ for case in CASES} | {"Delta"}
    assert names <= WeightGaussian.kinds.keys()
