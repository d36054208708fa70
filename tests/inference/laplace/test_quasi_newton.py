"""The quasi-Newton climb on functions whose summits are known."""

import math

import pytest
import torch
from torch import Tensor

from bll_pyro.inference.laplace.quasi_newton import quasi_newton_ascent

FAR = (torch.full((2,), -50.0).double(), torch.full((2,), 50.0).double())
EYE = torch.eye(2, dtype=torch.float64)


def quadratic(argument: Tensor) -> tuple[float, Tensor, str]:
    matrix, optimum = torch.tensor([[4.0, 1.5], [1.5, 1.0]]).double(), torch.tensor([1.0, -2.0]).double()
    moved = argument - optimum
    return -0.5 * float(moved @ matrix @ moved), -matrix @ moved, "seen"


def banana(argument: Tensor) -> tuple[float, Tensor, None]:
    """Rosenbrock's function upside down; optimum at (1, 1)."""
    point = argument.clone().requires_grad_()
    value = -((1 - point[0]) ** 2 + 10 * (point[1] - point[0] ** 2) ** 2)
    (slope,) = torch.autograd.grad(value, point)
    return float(value.detach()), slope, None


@pytest.mark.parametrize("guess", [0.01, 1.0, 100.0])
def test_summits_are_found_whatever_the_first_guess(guess: float) -> None:
    start = torch.tensor([-1.2, 1.0]).double()
    for function, optimum in [(quadratic, [1.0, -2.0]), (banana, [1.0, 1.0])]:
        found = quasi_newton_ascent(function, start, guess * EYE, 1e-6, FAR)
        assert found.converged and found.distance <= 1e-6
        torch.testing.assert_close(found.argument, torch.tensor(optimum).double(), rtol=0, atol=1e-5)
        assert len(found.values) == len(found.arguments) < 60
        assert found.values[-1] == pytest.approx(max(found.values), abs=1e-9)


def test_the_true_curvature_needs_one_step() -> None:
    matrix = torch.tensor([[4.0, 1.5], [1.5, 1.0]]).double()
    found = quasi_newton_ascent(quadratic, torch.zeros(2).double(), matrix, 1e-9, FAR)
    assert len(found.values) == 2
    assert found.point == "seen"


def test_bounds_hold_and_are_told() -> None:
    upper = torch.tensor([0.5, 50.0]).double()
    found = quasi_newton_ascent(quadratic, torch.zeros(2).double(), EYE, 1e-8, (FAR[0], upper))
    assert found.converged
    assert found.at_upper.tolist() == [True, False] and found.at_lower.tolist() == [False, False]
    # on the edge x = 0.5 the quadratic is highest where its slope in y vanishes
    torch.testing.assert_close(
        found.argument, torch.tensor([0.5, -2.0 + 1.5 * 0.5]).double(), rtol=0, atol=1e-7
    )


def test_values_that_are_not_numbers_shorten_the_step() -> None:
    def logarithm(argument: Tensor) -> tuple[float, Tensor, None]:
        x = float(argument[0])
        return (math.log(x) - x if x > 0 else math.nan), 1 / argument - 1, None

    bounds = (torch.full((1,), -9.0).double(), torch.full((1,), 9.0).double())
    found = quasi_newton_ascent(
        logarithm, torch.tensor([1.9]).double(), torch.eye(1).double() * 0.1, 1e-6, bounds
    )
    assert found.converged
    assert float(found.argument) == pytest.approx(1.0, abs=1e-5)


def test_a_wall_of_noise_ends_the_climb() -> None:
    def noisy(argument: Tensor) -> tuple[float, Tensor, None]:
        return (0.0 if not argument.any() else -1.0), torch.ones(2).double(), None

    found = quasi_newton_ascent(noisy, torch.zeros(2).double(), EYE, 1e-6, FAR)
    assert not found.converged
    assert not found.argument.any()
