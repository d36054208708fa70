"""Accuracy, NLL and Brier score against torch, scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss, hamming_loss, log_loss

from bll_pyro import metrics


@pytest.fixture(scope="module")
def classes():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(400, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(5, (400,), generator=generator)
    return logits, targets


@pytest.fixture(scope="module")
def labels():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(400, 3, dtype=torch.float64, generator=generator)
    targets = (torch.rand(400, 3, generator=generator) < 0.4).float()
    return logits, targets


def test_accuracy_of_classes(classes):
    from torchmetrics.functional.classification import multiclass_accuracy

    logits, y = classes
    expected = multiclass_accuracy(logits, y, num_classes=5, average="micro")
    assert metrics.accuracy(logits.softmax(1), y) == pytest.approx(float(expected), abs=1e-6)


def test_accuracy_of_labels_is_one_minus_hamming_loss(labels):
    logits, y = labels
    expected = 1 - hamming_loss(y.numpy(), logits.numpy() > 0)
    assert metrics.accuracy(logits.sigmoid(), y) == pytest.approx(expected, abs=1e-12)
    assert metrics.accuracy([0.5, 0.6], [0, 0]) == 0.5  # a half is not above a half


def test_accuracy_of_a_tie_counts_the_first_class():
    assert metrics.accuracy([[0.4, 0.4, 0.2]] * 2, [0, 1]) == 0.5


def test_nll_of_classes(classes):
    logits, y = classes
    expected = float(F.cross_entropy(logits, y))
    assert metrics.nll(logits.softmax(1), y) == pytest.approx(expected, rel=1e-12)
    assert metrics.nll(logits.log_softmax(1), y, log_probs=True) == pytest.approx(expected, rel=1e-12)
    assert log_loss(y.numpy(), logits.softmax(1).numpy()) == pytest.approx(expected, rel=1e-12)


def test_nll_of_labels_adds_the_labels_of_a_row(labels):
    logits, y = labels
    expected = float(F.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")) / len(y)
    assert metrics.nll(logits.sigmoid(), y) == pytest.approx(expected, rel=1e-12)
    assert metrics.nll(F.logsigmoid(logits), y, log_probs=True) == pytest.approx(expected, rel=1e-12)
    one = float(F.binary_cross_entropy_with_logits(logits[:, 0], y[:, 0].double()))
    assert metrics.nll(logits[:, 0].sigmoid(), y[:, 0]) == pytest.approx(one, rel=1e-12)


def test_nll_is_not_clipped_and_logarithms_reach_further():
    assert metrics.nll([[1.0, 0.0]], [1]) == math.inf
    assert metrics.nll([0.0], [1]) == metrics.nll([1.0], [0]) == math.inf
    logits = torch.tensor([[800.0, 0.0]], dtype=torch.float64)
    assert metrics.nll(logits.softmax(1), [1]) == math.inf
    assert metrics.nll(logits.log_softmax(1), [1], log_probs=True) == 800
    assert math.copysign(1, metrics.nll([[1.0, 0.0]], [0])) == 1


def test_nll_of_impossible_log_probabilities_that_were_not_seen_is_finite():
    assert metrics.nll([[0.0, -math.inf]], [0], log_probs=True) == 0
    assert metrics.nll([-math.inf], [0], log_probs=True) == 0


def test_nll_of_a_log_probability_just_above_0_counts_it_as_0():
    assert metrics.nll([1e-9], [1], log_probs=True) == 0
    assert metrics.nll([1e-9], [0], log_probs=True) == math.inf


def test_nll_refuses_logits_as_log_probabilities(classes):
    logits, y = classes
    with pytest.raises(ValueError, match=r"log_probs: expected values up to 0, got .* pass log_softmax"):
        metrics.nll(logits * 1000, y, log_probs=True)
    with pytest.raises(ValueError, match="rows that sum to 1"):
        metrics.nll(logits - 20, y, log_probs=True)


def test_brier_of_classes_sums_over_classes(classes):
    logits, y = classes
    p = logits.softmax(1).numpy()
    pytest.importorskip("sklearn", "1.7", reason="earlier ones have the score of two classes only")
    expected = brier_score_loss(y.numpy(), p, labels=range(5), scale_by_half=False)
    assert metrics.brier(p, y) == pytest.approx(expected, rel=1e-12)


def test_brier_of_labels_sums_over_labels_and_two_classes_are_twice_one_label(labels):
    logits, y = labels
    p = logits.sigmoid().numpy()
    each = [brier_score_loss(y[:, t].numpy(), p[:, t]) for t in range(3)]
    assert metrics.brier(p, y) == pytest.approx(sum(each), rel=1e-12)
    assert metrics.brier(p[:, 0], y[:, 0]) == pytest.approx(each[0], rel=1e-12)
    two_classes = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
    assert metrics.brier(two_classes, y[:, 0]) == pytest.approx(2 * each[0], rel=1e-12)
