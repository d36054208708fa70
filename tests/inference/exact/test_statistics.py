"""Sufficient statistics: the sums they claim to be, whatever the order, the split and the place of the rows."""

import pytest
import torch
from torch import Tensor

from bll_pyro.inference.exact.statistics import SufficientStatistics

NAMES = ("feature_mean", "target_mean", "gram", "cross", "square")


def rows(num_rows: int = 500, num_features: int = 7, offset: float = 100.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    features = torch.randn(num_rows, num_features, generator=random, dtype=torch.float64) + offset
    targets = torch.randn(num_rows, 2, generator=random, dtype=torch.float64) - 3 * offset + features[:, :2]
    return features, targets


def largest_difference(one: SufficientStatistics, other: SufficientStatistics) -> float:
    """Relative to the largest entry of each sum."""
    assert one.num_rows == other.num_rows
    pairs = [(getattr(one, name), getattr(other, name)) for name in NAMES]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def test_are_the_sums() -> None:
    features, targets = rows()
    sums = SufficientStatistics.of(features, targets)
    h, y = features - features.mean(0), targets - targets.mean(0)
    expected = SufficientStatistics(
        500, 500.0, features.mean(0), targets.mean(0), h.T @ h, h.T @ y, (y * y).sum(0)
    )
    assert largest_difference(sums, expected) < 1e-13


@pytest.mark.parametrize("size", [1, 7, 499, 1000])
def test_order_and_split_of_batches(size: int) -> None:
    features, targets = rows()
    whole = SufficientStatistics.of(features, targets)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    blocks = [(features[i], targets[i]) for i in order.split(size)]
    assert largest_difference(SufficientStatistics.of_blocks(blocks), whole) < 1e-10


def test_parts_add_up_and_stay_as_they_are() -> None:
    features, targets = rows()
    parts = [
        SufficientStatistics.of(features[i], targets[i])
        for i in (slice(100), slice(100, 103), slice(103, 500))
    ]
    kept = [part.gram.clone() for part in parts]
    whole = SufficientStatistics.of(features, targets)
    assert largest_difference(parts[0] + parts[1] + parts[2], whole) < 1e-12
    assert largest_difference(parts[2] + (parts[1] + parts[0]), whole) < 1e-12
    assert all(torch.equal(part.gram, gram) for part, gram in zip(parts, kept))


def test_float32_rows_far_from_0_lose_nothing_but_their_own_rounding() -> None:
    features, targets = (part.float() for part in rows(offset=1000.0))
    exact = SufficientStatistics.of(features.double(), targets.double())
    assert largest_difference(SufficientStatistics.of(features, targets), exact) == 0
    # what a product in float32 without centring would give
    careless = (features.T @ features - 500 * torch.outer(features.mean(0), features.mean(0))).double()
    assert (careless - exact.gram).abs().max() / exact.gram.abs().max() > 1e-4


def test_memory_does_not_grow_with_rows() -> None:
    features, targets = rows(num_rows=20)
    one = SufficientStatistics.of(features, targets)
    many = SufficientStatistics.of_blocks((features, targets) for _ in range(50))
    assert [getattr(one, n).shape for n in NAMES] == [getattr(many, n).shape for n in NAMES]
    assert many.num_rows == 1000
    assert torch.allclose(many.gram, 50 * one.gram, rtol=1e-12)


def test_bad_rows() -> None:
    features, targets = rows(num_rows=5)
    with pytest.raises(
        ValueError, match=r"expected features \[N, D\] and targets \[N, T\].*got \[5, 7\] and \[4, 2\]"
    ):
        SufficientStatistics.of(features, targets[:4])
    with pytest.raises(ValueError, match="expected at least one row"):
        SufficientStatistics.of_blocks([])
    with pytest.raises(ValueError, match="7 features and 2 targets, got 6 and 2"):
        SufficientStatistics.of(features, targets) + SufficientStatistics.of(features[:, :6], targets)
