"""Reliability bins and calibration errors against loops, torchmetrics, and models of known miscalibration."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bll_pyro import metrics


def simulated(num_rows: int, num_classes: int, seed: int, sharpen: float = 1.0):
    """Targets drawn from a softmax, and that softmax with its logits multiplied: 1 is calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_rows, num_classes, dtype=torch.float64, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (sharpen * logits).softmax(1).numpy(), targets.numpy()


def gap_by_loop(confidence, hit, edges):
    total = 0.0
    for low, high in pairwise(edges):
        rows = (confidence >= low) & ((confidence < high) | (high == edges[-1]))
        if rows.any():
            total += rows.mean() * abs(hit[rows].mean() - confidence[rows].mean())
    return total


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_ece_of_classes(num_bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = simulated(600, 4, seed=0, sharpen=1.7)
    value = metrics.ece(p, y, num_bins)
    assert value == pytest.approx(
        gap_by_loop(p.max(1), p.argmax(1) == y, np.linspace(0, 1, num_bins + 1)), rel=1e-12
    )
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=4, n_bins=num_bins)
    assert value == pytest.approx(float(theirs), abs=1e-6)
    assert metrics.reliability(p, y, num_bins).ece == value


def test_ece_of_labels_is_the_mean_of_the_binary_ones():
    from torchmetrics.functional.classification import binary_calibration_error

    generator = torch.Generator().manual_seed(3)
    p = torch.rand(500, 3, dtype=torch.float64, generator=generator)
    y = (torch.rand(500, 3, dtype=torch.float64, generator=generator) < p**2).long()
    each = [float(binary_calibration_error(p[:, t].contiguous(), y[:, t], n_bins=10)) for t in range(3)]
    assert metrics.ece(p, y, 10) == pytest.approx(np.mean(each), abs=1e-6)
    assert metrics.ece(p[:, 1], y[:, 1], 10) == pytest.approx(each[1], abs=1e-6)
    assert metrics.classwise_ece(p, y, 10) == metrics.ece(p, y, 10)


def test_certain_rows_share_the_last_bin():
    p = np.array([[1.0, 0.0], [0.97, 0.03], [0.98, 0.02], [1.0, 0.0]])
    bins = metrics.reliability(p, [0, 1, 0, 0], num_bins=15)
    assert bins.count[-1] == 4
    assert bins.ece == pytest.approx(abs(p[:, 0].mean() - 0.75), rel=1e-12)


def test_bins_of_equal_width_are_closed_on_the_left():
    bins = metrics.reliability([0.0, 0.49, 0.5, 1.0], [0, 1, 1, 1], num_bins=2)
    assert bins.count.tolist() == [2, 2]
    np.testing.assert_allclose(bins.confidence, [0.245, 0.75])
    np.testing.assert_array_equal(bins.accuracy, [0.5, 1])


def test_calibrated_model_has_an_ece_near_0_and_a_sharpened_one_its_excess_confidence():
    p, y = simulated(100_000, 5, seed=4)
    # Each bin's gap has a standard deviation of at most 0.5 / sqrt(count): the sum is below 0.5 sqrt(B / N) on average.
    assert metrics.ece(p, y) < 2 * 0.5 * np.sqrt(15 / 100_000)
    over, y = simulated(100_000, 5, seed=4, sharpen=3.0)
    # Confidence is above accuracy in every bin, so that the gaps add up to the overall one.
    assert metrics.ece(over, y) == pytest.approx(over.max(1).mean() - metrics.accuracy(over, y), abs=2e-3)


def test_constant_confidence_of_known_error():
    rng = np.random.default_rng(5)
    y = (rng.random(40_000) > 0.7).astype(int)
    p = np.tile([0.9, 0.1], (40_000, 1))
    for equal_mass in (False, True):
        value = metrics.ece(p, y, equal_mass=equal_mass)
        assert value == pytest.approx(0.2, abs=4 * np.sqrt(0.21 / 40_000))


def test_equal_mass_bins_are_slices_of_the_sorted_rows():
    p, y = simulated(600, 4, seed=6, sharpen=1.7)
    confidence, hit = p.max(1), p.argmax(1) == y
    slices = np.split(np.argsort(confidence), 12)
    expected = np.mean([abs(hit[rows].mean() - confidence[rows].mean()) for rows in slices])
    bins = metrics.reliability(p, y, 12, equal_mass=True)
    assert (bins.count == 50).all()
    assert bins.ece == pytest.approx(expected, rel=1e-12)
    sizes = metrics.reliability(p[:595], y[:595], 12, equal_mass=True).count
    assert set(sizes.tolist()) == {49, 50}


def test_equal_mass_does_not_depend_on_the_order_of_rows_that_tie():
    p, y = simulated(600, 3, seed=7, sharpen=2.0)
    p = np.round(p, 1) / np.round(p, 1).sum(1, keepdims=True)
    order = np.random.default_rng(0).permutation(600)
    here, there = (metrics.reliability(p[o], y[o], 10, equal_mass=True) for o in (np.arange(600), order))
    np.testing.assert_array_equal(here.count, there.count)
    np.testing.assert_allclose(here.accuracy, there.accuracy, rtol=1e-12)
    assert here.count.sum() == 600


def test_adaptive_ece_is_the_formula_of_the_paper():
    p, y = simulated(600, 4, seed=8, sharpen=1.7)
    terms = []
    for k in range(4):
        for rows in np.split(np.argsort(p[:, k]), 15):
            terms.append(abs((y[rows] == k).mean() - p[rows, k].mean()))
    assert metrics.adaptive_ece(p, y) == pytest.approx(np.mean(terms), rel=1e-12)


def test_classwise_ece_averages_one_against_the_rest():
    p, y = simulated(600, 4, seed=9, sharpen=1.7)
    edges = np.linspace(0, 1, 16)
    expected = np.mean([gap_by_loop(p[:, k], y == k, edges) for k in range(4)])
    assert metrics.classwise_ece(p, y) == pytest.approx(expected, rel=1e-12)


def test_band_is_wilsons_and_empty_bins_are_nan():
    p, y = simulated(300, 4, seed=10)
    bins = metrics.reliability(p, y, 10, prob=0.9)
    filled = bins.count > 0
    assert not filled[:2].any()  # a largest probability of 4 is at least a quarter
    assert filled[3:].all()
    for values in (bins.confidence, bins.accuracy, bins.lower, bins.upper):
        np.testing.assert_array_equal(np.isnan(values), ~filled)
    n, share, z = bins.count[filled], bins.accuracy[filled], norm.ppf(0.95)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(bins.lower[filled], np.maximum(centre - half, 0), atol=1e-12)
    np.testing.assert_allclose(bins.upper[filled], np.minimum(centre + half, 1), atol=1e-12)


def test_refusals():
    p, y = simulated(20, 3, seed=0)
    with pytest.raises(ValueError, match="num_bins: expected a whole number of at least 1, got 0"):
        metrics.ece(p, y, 0)
    with pytest.raises(ValueError, match="prob: expected a number strictly between 0 and 1, got 95"):
        metrics.reliability(p, y, prob=95)
    with pytest.raises(ValueError, match=r"one label, got 3 labels; call it for each: probs\[:, t\]"):
        metrics.reliability(np.full((4, 3), 0.5), np.ones((4, 3)))
