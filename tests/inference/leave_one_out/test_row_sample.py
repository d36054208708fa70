"""Rows drawn by size: totals against sums over all rows, and rows outside against the ratio."""

import pytest
import torch

from bll_pyro.inference.leave_one_out.row_sample import RowSample


def sizes(num_rows=5000):
    return torch.randn(num_rows, generator=torch.Generator().manual_seed(0)).mul(2).exp()


def test_large_rows_are_certain_and_totals_agree():
    values = sizes()
    sample = RowSample.by_size(values, 500)
    assert len(sample.index) == pytest.approx(500, abs=1)
    assert bool((sample.index.diff() > 0).all())
    assert set(values.topk(100).indices.tolist()) <= set(sample.index.tolist())
    assert float(sample.count.min()) >= 1
    # about a constant over the size in each row: the systematic sample is off by little
    assert float((sample.count * values[sample.index]).sum()) == pytest.approx(float(values.sum()), rel=0.02)
    assert float(sample.count.sum()) == pytest.approx(len(values), rel=0.15)


def test_rows_outside_follow_the_ratio_and_rows_inside_are_as_found():
    values = sizes()
    truth = 0.7 * values * (1 + 0.1 * torch.randn(len(values), generator=torch.Generator().manual_seed(1)))
    sample = RowSample.by_size(values, 500)
    spread = sample.spread(truth[sample.index], values)
    assert torch.equal(spread[sample.index], truth[sample.index])
    outside = torch.ones(len(values), dtype=torch.bool)
    outside[sample.index] = False
    # the ratio is an average over 400 rows with errors of 0.1, some counting for more than others
    assert torch.allclose(spread[outside] / values[outside], torch.tensor(0.7), atol=0.03)


def test_nothing_to_lose_is_nothing_lost_and_all_rows_can_be_taken():
    sample = RowSample.by_size(torch.zeros(50), 10)
    assert len(sample.index) == 10
    assert torch.equal(sample.spread(torch.zeros(10), torch.zeros(50)), torch.zeros(50))
    assert len(RowSample.by_size(torch.ones(20), 20).index) == 20
