"""Draws under a predictive temperature: on average they are the tempered prediction, and they stay as near as can be."""

import numpy as np
import pytest
import torch

from bll_pyro.prediction.recalibration import averaged
from bll_pyro.prediction.tilt import solve, tilted


def some_probs(num_classes, spread, num_draws=64, num_rows=20):
    random = torch.Generator().manual_seed(num_classes)
    outputs = spread * torch.randn(num_draws, num_rows, num_classes, generator=random, dtype=torch.float64)
    return (outputs + 2 * torch.randn(num_rows, num_classes, generator=random)).softmax(-1)


@pytest.mark.parametrize("temperature", [0.15, 0.5, 2.0, 8.0])
@pytest.mark.parametrize(("num_classes", "spread"), [(2, 1.0), (2, 15.0), (6, 0.3), (6, 5.0), (40, 2.0)])
def test_the_average_is_the_tempered_one(num_classes, spread, temperature):
    probs = some_probs(num_classes, spread)
    found = tilted(probs, solve(probs, temperature))
    torch.testing.assert_close(found.sum(-1), torch.ones(64, 20, dtype=torch.float64))
    torch.testing.assert_close(found.mean(0), averaged(probs, temperature)[0], atol=2e-7, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_it_is_the_nearest_joint_distribution_with_these_margins(temperature):
    """Iterative proportional fitting of the table of draw and class (Deming and Stephan 1940), row by row."""
    probs = some_probs(4, 1.5).numpy()
    wanted = averaged(torch.from_numpy(probs), temperature)[0].numpy()
    table = probs / len(probs)
    for _ in range(20_000):
        table = table * (wanted / table.sum(0))
        table = table / table.sum(-1, keepdims=True) / len(probs)
    found = tilted(torch.from_numpy(probs), solve(torch.from_numpy(probs), temperature))
    np.testing.assert_allclose(found.numpy(), table * len(probs), atol=1e-5)


def test_one_draw_is_the_prediction():
    probs = some_probs(5, 1.0, num_draws=1)
    torch.testing.assert_close(
        tilted(probs, solve(probs, 0.4))[0], averaged(probs, 0.4)[0], atol=2e-7, rtol=0
    )
