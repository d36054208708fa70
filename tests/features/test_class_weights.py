"""Weights of classes as weights of rows."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight

import bll_pyro as bll

LABELS = np.array([0, 3, 3, 3, 1, 1, 0, 3])


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.tolist(), torch.tensor(LABELS).float(), torch.tensor(LABELS).int()]
)
def test_balanced_weights_are_those_of_scikit_learn(labels: Any) -> None:
    found = bll.class_weights(labels)
    np.testing.assert_allclose(found.numpy(), compute_sample_weight("balanced", LABELS), rtol=1e-6)
    assert float(found.sum()) == pytest.approx(len(LABELS))


def test_given_weights() -> None:
    found = bll.class_weights(LABELS, {0: 2, 1: 0.0, 3: 0.5, 7: 1.0})
    np.testing.assert_allclose(found.numpy(), [{0: 2, 1: 0.0, 3: 0.5}[label] for label in LABELS.tolist()])


def test_a_weighted_fit_predicts_for_equally_frequent_classes() -> None:
    """Features say nothing, so the probabilities are the share of each class among the weighted rows."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    features = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    layer = bll.LastLayer(bll.likelihoods.Categorical(2), bll.priors.Normal(0.01))
    weight = bll.class_weights(labels)
    fit = bll.fit(layer, (features, labels), sample_weight=weight, calibration=None)
    assert float(fit.predict(features).probs[:, 1].mean()) == pytest.approx(0.5, abs=0.02)
    plain = bll.fit(layer, (features, labels), calibration=None)
    assert float(plain.predict(features).probs[:, 1].mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 1.0],), "whole numbers"),
        (([[0, 1]],), r"labels \[N\]"),
        (([],), r"labels \[N\]"),
        ((LABELS, {0: 1.0, 1: 1.0}), r"none for \[3\]"),
        ((LABELS, {0: 1.0, 1: -1.0, 3: 1.0}), "expected a number >= 0 for each class, got .*-1.0"),
        ((LABELS, {0: 1.0, 1: float("inf"), 3: 1.0}), "expected a number >= 0 for each class, got .*inf"),
    ],
)
def test_wrong_labels_and_weights(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bll.class_weights(*arguments)
