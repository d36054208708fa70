"""Fewer rows than half the columns: the decomposition by the rows is that of the product."""

from dataclasses import replace

import pytest
import torch

from bll_pyro.inference.exact.linear_gaussian import LinearGaussian, eigenvectors_of_rows
from bll_pyro.inference.exact.statistics import SufficientStatistics

NOISE, SCALE = (
    torch.tensor([[0.3, 0.1], [1.0, 2.0]]).double(),
    torch.tensor([[0.5, 2.0], [1.0, 0.1]]).double(),
)


def some(num_rows: int, num_columns: int) -> torch.Tensor:
    """Columns of very different spread, the last row a copy of the first."""
    random = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, num_columns, generator=random, dtype=torch.float64)
    rows = rows * torch.logspace(0, -5, num_columns, dtype=torch.float64)
    return torch.cat([rows, rows[:1]])


@pytest.mark.parametrize("num_rows", [1, 7, 20])
def test_values_and_vectors_are_those_of_the_product(num_rows: int) -> None:
    rows = some(num_rows, 40)
    values, vectors = eigenvectors_of_rows(rows)
    product = rows.mT @ rows
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(40).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        vectors * values @ vectors.mT, product, rtol=0, atol=1e-13 * product.abs().max()
    )
    expected = torch.linalg.eigvalsh(product)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13 * float(expected[-1]))


@pytest.mark.parametrize("bias_scale", [10.0, None])
@pytest.mark.parametrize("weight", [None, torch.arange(1.0, 9.0)])
def test_evidence_and_weights_are_those_without_the_rows(
    bias_scale: float | None, weight: torch.Tensor | None
) -> None:
    features = some(7, 30)
    targets = torch.stack([features[:, 0], features[:, :9].sum(1) + 1], -1)
    sums = SufficientStatistics.of(features, targets, weight)
    assert sums.root is not None and (sums + sums).root is None
    loc = torch.full((2, 30), 0.2, dtype=torch.float64)
    found = []
    for given in (sums, replace(sums, root=None)):
        model, rotation = LinearGaussian.of(given, loc, bias_scale)
        weights = model.given(NOISE, SCALE).loc[:, :30] @ rotation.mT
        found.append((model.log_evidence(NOISE, SCALE), weights))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-7)
