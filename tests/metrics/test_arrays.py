"""What metrics accept and what they refuse: each message says what was expected, what was got, what to do."""

import numpy as np
import pytest
import torch

from bll_pyro import metrics
from bll_pyro.metrics.arrays import real, round_up

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
Y = np.array([0, 1])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.bool]
)
def test_tensors_of_any_type_become_float64_arrays(dtype):
    array = real("x", torch.tensor([0.0, 1.0], requires_grad=False).to(dtype))
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, [0, 1])


def test_tensor_with_gradient_array_and_list_give_the_same():
    tensor = torch.tensor(P, requires_grad=True)
    values = {metrics.nll(probs, Y) for probs in (tensor, P, P.tolist())}
    assert len(values) == 1


def test_inputs_are_not_changed():
    p, y = torch.tensor(P), torch.tensor(Y)
    draws, targets = (
        torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.ones(2),
    )
    kept = [x.clone() for x in (p, y, draws, targets)]
    metrics.nll(p, y)
    metrics.classwise_ece(p, y)
    metrics.crps_sample(draws, targets)
    metrics.pit(p[:, 0])
    for now, before in zip((p, y, draws, targets), kept, strict=True):
        assert torch.equal(now, before)


@pytest.mark.unchecked
@pytest.mark.parametrize("values", [["a", "b"], np.array([1j]), torch.tensor([1j])])
def test_what_is_not_a_real_number_is_a_type_error(values):
    with pytest.raises(TypeError, match=r"x: expected real numbers.*, got .*; "):
        real("x", values)


REFUSED = {
    "NaN": (
        np.array([[0.5, np.nan], [0.5, 0.5]]),
        Y,
        r"probs: expected finite values, got 1 bad of 4.*index \(0, 1\)",
    ),
    "no rows": (np.zeros((0, 3)), np.zeros(0), r"probs: expected at least one value, got shape \(0, 3\)"),
    "logits": (np.array([[3.0, -1.0], [0.2, 0.1]]), Y, r"from 0 to 1, got -1 to 3; logits need a softmax"),
    "sum": (
        np.array([[0.5, 0.5], [0.5, 0.4]]),
        Y,
        r"rows that sum to 1 .* got 0.9 in row 1; take the softmax",
    ),
    "one class": (np.ones((2, 1)), Y, r"\[rows, classes\] with 2 classes or more, got \(2, 1\)"),
    "rows": (P, np.array([0, 1, 2]), r"each of 2 rows, shape \(2,\), got \(3,\)"),
    "label above": (
        P,
        np.array([0, 3]),
        r"from 0 to 2, got 3 in row 1 \(1 such rows\); number the classes from 0",
    ),
    "label below": (P, np.array([-1, 0]), r"from 0 to 2, got -1 in row 0"),
    "label broken": (P, np.array([0.5, 0]), r"whole numbers from 0 to 2, got 0.5 in row 0"),
    "draws": (np.stack([P, P]), Y, r"\[rows, classes\] with 2 classes or more, got \(2, 2, 3\)"),
    "shapes": (
        P,
        np.zeros((2, 2)),
        r"got probs \(2, 3\) and targets \(2, 2\); predict and pass the same rows",
    ),
    "one-hot": (P, np.eye(3)[Y], r"expected class numbers, shape \(2,\).*pass targets.argmax\(1\)"),
    "not 0/1": (np.array([0.2, 0.7]), np.array([0, 2]), r"expected 0 or 1 for labels .* got 0 to 2"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.adaptive_ece]
)
def test_classification_refuses(metric, case):
    probs, targets, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        metric(probs, targets)


def test_sum_of_a_float32_softmax_over_a_thousand_classes_passes_and_of_bfloat16_does_not():
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50)
    metrics.nll(logits.softmax(1), y)
    with pytest.raises(ValueError, match="in float32 or float64"):
        metrics.nll(logits.bfloat16().softmax(1), y)


def test_rounding_up_forgives_one_rounding_error_and_no_more():
    assert 100 * 0.07 > 7
    assert round_up(100 * 0.07) == 7
    assert round_up(7 + 1e-9) == 8
    assert [round_up(x) for x in (0.2, 1.0, 19.0)] == [1, 1, 19]
