"""Random order by blocks and a buffer: each row once, the same for the same seed, and as near to random as the formula says."""

from itertools import pairwise

import pytest
import torch

from bll_pyro.features.store import Features

D = 4
ROW = 4 * D


def store(path, num_rows, cuts, read="ahead"):
    x = torch.arange(num_rows * D, dtype=torch.float32).reshape(num_rows, D)
    writer = Features.writer(path)
    for k, (start, stop) in enumerate(pairwise(cuts)):
        writer.write(f"p{k}", x[start:stop], torch.arange(start, stop), row_ids=range(start, stop))
    return x, Features.commit(path, read=read)


def batches(features, size, seed, window, block):
    random = torch.Generator().manual_seed(seed)
    return list(features.shuffled_batches(size, random, buffer_bytes=window * ROW, block_bytes=block * ROW))


@pytest.mark.parametrize("read", ["mmap", "ahead"])
@pytest.mark.parametrize(("size", "window", "block"), [(7, 20, 4), (32, 16, 3), (5, 1000, 1), (200, 30, 7)])
def test_each_row_comes_once_in_batches_of_one_size(tmp_path, read, size, window, block):
    x, features = store(tmp_path / "f", 101, [0, 40, 41, 101], read)
    found = batches(features, size, 0, window, block)
    assert [len(rows) for rows, _ in found[:-1]] == [size] * (101 // size)
    numbers = torch.cat([index for _, index in found])
    assert torch.equal(numbers.sort().values, torch.arange(101))
    assert torch.equal(torch.cat([rows for rows, _ in found]), x[numbers])
    again, other = (batches(features, size, seed, window, block) for seed in (0, 1))
    assert torch.equal(torch.cat([index for _, index in again]), numbers)
    assert not torch.equal(torch.cat([index for _, index in other]), numbers)


NUM, BLOCK, WINDOW, BATCH, PASSES = 2048, 16, 256, 64, 60


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """Places ``[passes, N]``: which row came at each place of a pass."""
    _, features = store(tmp_path_factory.mktemp("f") / "f", NUM, [0, 700, NUM])
    found = [batches(features, BATCH, seed, WINDOW, BLOCK) for seed in range(PASSES)]
    return torch.stack([torch.cat([index for _, index in one]) for one in found])


def test_a_row_is_equally_likely_at_each_place(orders):
    """Chi-square over (sixteenth of the rows, sixteenth of the places), with the variance that clusters of a block leave.

    Counts of a cell come in blocks of c rows that share a window; were all rows independent, the statistic would have a mean of
    15 x 15. Blocks multiply the variance of a count by at most c, and so the statistic: above 99.9% of it something is wrong.
    """
    share = NUM // 16
    cell = (orders // share) * 16 + torch.arange(NUM) // share
    counts = cell.flatten().bincount(minlength=256).double()
    expected = PASSES * NUM / 256
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < BLOCK * (225 + 3.1 * 450**0.5)
    # the fixed order 0, 1, 2, ... would have all counts on the diagonal
    assert statistic < 0.01 * PASSES * NUM * 15


def test_place_and_row_are_not_correlated(orders):
    """The mean over passes of the correlation of place and row number; a pass has N / c independent blocks."""
    places = torch.arange(NUM).double()
    centred, rows = places - places.mean(), orders.double() - places.mean()
    correlation = (rows @ centred) / centred.square().sum()
    limit = 3.3 * (BLOCK / NUM / PASSES) ** 0.5
    assert abs(float(correlation.mean())) < limit


@pytest.mark.parametrize("rho", [1.0, 0.25])
def test_the_variance_of_a_batch_is_what_the_formula_says(orders, rho):
    """Of a value that rows of a block share in part; averaged over values, passes and batches, of which there are 1,920."""
    random = torch.Generator().manual_seed(3)
    shared = torch.randn(NUM // BLOCK, 40, generator=random).repeat_interleave(BLOCK, 0)
    own = torch.randn(NUM, 40, generator=random)
    values = rho**0.5 * shared + (1 - rho) ** 0.5 * own
    values = values - values.mean(0)
    means = values[orders].reshape(PASSES, NUM // BATCH, BATCH, 40).mean(2)
    simple = values.var(0, correction=1) / BATCH * (1 - BATCH / NUM)
    found = float((means.square().mean((0, 1)) / simple).mean())
    share = (BLOCK - 1) / (WINDOW - 1) - (BLOCK - 1) / (NUM - 1)
    assert found == pytest.approx(1 + rho * (BATCH - 1) * share, rel=0.08)
    assert rho < 1 or found > 3  # the blocks here are large, so that there is something to see
