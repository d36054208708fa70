"""Quasi-random normals: moments, and an error that falls faster than that of random draws; and a grid for one dimension."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from bll_pyro.gaussian import normal_grid, normal_points


def test_moments() -> None:
    points = normal_points(1024, 4).double()
    assert float(points.mean(0).abs().max()) < 2e-3
    torch.testing.assert_close(points.mT.cov(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1.5e-2)


def test_error_falls_faster_than_that_of_random_draws() -> None:
    """``E[sigmoid(x1 + x2 / 2)^2 cos(x3)]``: root mean square error over scramblings at 64 and 4,096 points."""

    def estimate(num_points: int, seed: int) -> float:
        x = normal_points(num_points, 3, seed).double()
        return float((torch.sigmoid(x[:, 0] + 0.5 * x[:, 1]).square() * x[:, 2].cos()).mean())

    # tensor product of Gauss-Hermite rules as the truth
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    weights = weights / weights.sum()
    first = torch.sigmoid(nodes[:, None] + 0.5 * nodes).square()
    truth = float((weights @ first @ weights) * (weights @ nodes.cos()))

    def error(num_points: int) -> float:
        return float(
            torch.tensor([estimate(num_points, s) - truth for s in range(16)]).square().mean().sqrt()
        )

    rate = torch.log2(torch.tensor(error(64) / error(4096))) / 6  # 64-fold: 6 doublings
    assert float(rate) > 0.7, f"error falls like S^-{float(rate):.2f}; random draws have S^-0.5"


def test_same_seed_same_points() -> None:
    torch.testing.assert_close(normal_points(32, 2, seed=1), normal_points(32, 2, seed=1))
    assert not torch.equal(normal_points(32, 2, seed=1), normal_points(32, 2, seed=2))


def test_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    normal_points(33, 3, seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_no_dimension_and_very_many() -> None:
    assert normal_points(8, 0).shape == (8, 0)
    many = normal_points(4, 30_000)
    assert many.shape == (4, 30_000)
    assert bool(torch.isfinite(many).all())


@pytest.mark.parametrize(("num_points", "dim"), [(0, 2), (4, -1)])
def test_bad_sizes(num_points: int, dim: int) -> None:
    with pytest.raises(ValueError, match="num_points >= 1 and dim >= 0"):
        normal_points(num_points, dim)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 1.0])
def test_a_grid_integrates_what_labels_need(spread: float, mean: float) -> None:
    """``log(1 + exp f)`` of a normal f, by SciPy's quadrature."""
    points, weights = normal_grid(24, 0.45)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(weights @ points) == pytest.approx(0.0, abs=1e-14)
    assert float(weights @ points.square()) == pytest.approx(1.0, abs=1e-12)
    found = float(weights @ torch.nn.functional.softplus(mean + spread * points))
    exact, _ = quad(
        lambda z: np.logaddexp(0.0, mean + spread * z) * norm.pdf(z), -12, 12, limit=400, epsabs=1e-12
    )
    assert found == pytest.approx(exact, abs=2e-5)
