"""Our optimizers against torch's: the same steps, and none of torch's compiler."""

import numpy as np
import pytest
import torch
from scipy import optimize

from bll_pyro.optimizers import Adam, InverseHessian, minimise


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax_regression(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose columns differ in scale by a factor of 30, and labels."""
    random = generator(0)
    features = torch.randn(120, 8, generator=random).to(dtype) * torch.logspace(-1, 0.5, 8, dtype=dtype)
    return features, torch.randint(3, (120,), generator=random)


def penalised(weights: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    features, labels = softmax_regression(dtype)
    fit = torch.nn.functional.cross_entropy(features @ weights.mT, labels)
    return fit + weights.square().sum() / (2 * scale**2 * len(labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_bit_for_bit_that_of_torch(dtype: torch.dtype) -> None:
    """With rates that change, and with a parameter that has a gradient in some steps only."""
    starts = [torch.randn(4, 3, generator=generator(0), dtype=dtype), torch.randn(5, generator=generator(1))]
    ours, theirs = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
    pairs = (
        (ours, Adam(ours, 0.1, (0.9, 0.99))),
        (theirs, torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.99), fused=True)),
    )
    for step in range(20):
        for (matrix, vector), optimizer in pairs:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.zero_grad()
            loss = (matrix.square() * (step + 1)).sum()
            if step % 3:
                loss = loss + (vector - 1).pow(4).sum()
            loss.backward()
            optimizer.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        assert torch.equal(mine, other)
        assert not torch.equal(mine, start)


@pytest.mark.parametrize("num_steps", [1, 3, 12])
def test_steps_of_lbfgs_are_those_of_torch(num_steps: int) -> None:
    """While neither has to search along a line for long, both take the same steps."""
    ours, theirs = (torch.zeros(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    minimise(lambda: penalised(ours, 1.0, torch.float64), [ours], num_steps)
    optimizer = torch.optim.LBFGS(
        [theirs], max_iter=num_steps, max_eval=100, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = penalised(theirs, 1.0, torch.float64)
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_minimum_is_that_of_scipy() -> None:
    found = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    result = minimise(lambda: penalised(found, 1.0, torch.float64), [found], 200, tolerance=1e-14)

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.tensor(x.reshape(3, 8), requires_grad=True)
        value = penalised(weights, 1.0, torch.float64)
        value.backward()
        return value.item(), weights.grad.numpy().ravel()

    expected = optimize.minimize(value_and_slope, np.zeros(24), jac=True, method="BFGS", tol=1e-9)
    np.testing.assert_allclose(found.detach().numpy().ravel(), expected.x, atol=1e-6)
    assert result.converged.tolist() == [True]
    assert result.value.item() == pytest.approx(expected.fun, abs=1e-12)


@pytest.mark.parametrize("start", [(-1.2, 1.0), (3.0, -4.0), (0.0, 30.0)])
def test_a_bent_valley_is_followed_to_its_end(start: tuple[float, float]) -> None:
    """Rosenbrock's function needs steps that are shortened and lengthened."""
    x, y = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in start)
    result = minimise(lambda: 100 * (y - x**2) ** 2 + (1 - x) ** 2, [x, y], 200, tolerance=1e-16)
    assert (x.item(), y.item()) == pytest.approx((1, 1), abs=1e-6)
    assert result.num_evaluations < 200


def test_problems_side_by_side_go_as_each_would_alone() -> None:
    scales = [0.1, 0.5, 1.0, 20.0]
    together = [torch.zeros(4, 3, 7, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)]
    for parameter in together:
        parameter.requires_grad_()

    def losses() -> torch.Tensor:
        joined = torch.cat([together[0], together[1][:, :, None]], -1)
        return torch.stack(
            [penalised(each, s, torch.float64) for each, s in zip(joined, scales, strict=True)]
        )

    found = minimise(losses, together, 40)
    for index, scale in enumerate(scales):
        weights = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
        alone = minimise(lambda w=weights, s=scale: penalised(w, s, torch.float64), [weights], 40)
        one = torch.cat([together[0][index], together[1][index][:, None]], -1)
        torch.testing.assert_close(one, weights, rtol=1e-7, atol=1e-9)
        assert found.value[index].item() == pytest.approx(alone.value.item(), abs=1e-12)
    assert found.converged[0]  # the tighter the penalty, the rounder the valley


def test_where_the_loss_is_not_finite_no_step_ends() -> None:
    """``x - log x`` from 9: the first long step would leave the range of the logarithm."""
    x = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    values = []

    def loss() -> torch.Tensor:
        values.append((50 * (x - x.log())).item())
        return 50 * (x - x.log())

    minimise(loss, [x], 50, tolerance=1e-14)
    assert x.item() == pytest.approx(1, abs=1e-6)


def test_a_start_that_is_not_finite_or_flat_is_left_alone() -> None:
    for value in (torch.nan, torch.inf):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        result = minimise(lambda x=x, value=value: (x * value).sum(), [x], 5)
        assert x.tolist() == [1, 2]
        assert result.converged.tolist() == [False]
    x = torch.ones(2, requires_grad=True)
    result = minimise(lambda: (x - 1).square().sum(), [x], 5)
    assert x.tolist() == [1, 1]
    assert (result.converged.tolist(), result.num_evaluations) == ([True], 1)


def test_a_loss_without_an_end_gives_up_after_the_steps_that_it_has() -> None:
    x = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    result = minimise(lambda: -x, [x], 3)
    assert result.converged.tolist() == [False]
    assert torch.isfinite(x) and x > 1e3


def test_single_precision_ends_where_rounding_does() -> None:
    """A loss of 1e4 has steps of .001: the slope alone leads to the minimum."""
    x = torch.full((3,), 5.0, requires_grad=True)
    scale = torch.tensor([1.0, 10.0, 0.1])
    minimise(lambda: 1e4 + (scale * (x - 2).square()).sum(), [x], 60, tolerance=1e-12)
    assert (x - 2).abs().max().item() < 0.05


def test_a_search_goes_on_with_the_curvature_of_another() -> None:
    """Of ten times the loss: with what was learned, times a tenth, the second step is nearly Newton's."""
    matrix = torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64))

    def number_of_evaluations(factor: float, inverse: InverseHessian | None) -> int:
        point = torch.ones(4, dtype=torch.float64, requires_grad=True)
        found = minimise(
            lambda: factor * point @ matrix @ point / 2, [point], 50, tolerance=1e-6, inverse=inverse
        )
        assert float(found.value) < 1e-4
        return found.num_evaluations

    inverse = InverseHessian(20)
    first = number_of_evaluations(1.0, inverse)
    inverse.multiply(0.1)
    assert number_of_evaluations(10.0, inverse) < 0.5 * first
