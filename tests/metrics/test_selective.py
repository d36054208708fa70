"""Abstaining and deciding: brute force over all orders of acceptance and over all actions."""

from itertools import permutations

import numpy as np
import pytest
import torch

from bll_pyro import metrics


def test_curve_without_ties_is_the_running_mean():
    rng = np.random.default_rng(0)
    uncertainty, error = rng.random(50), rng.random(50)
    curve = metrics.risk_coverage(uncertainty, error)
    order = np.argsort(uncertainty)
    np.testing.assert_allclose(curve.risk, [error[order[: i + 1]].mean() for i in range(50)], rtol=1e-12)
    np.testing.assert_allclose(curve.coverage, np.arange(1, 51) / 50)
    assert metrics.aurc(uncertainty, error) == pytest.approx(curve.risk.mean())


def test_curve_with_ties_is_the_mean_over_all_orders_that_respect_the_uncertainty():
    uncertainty, error = np.array([2.0, 1.0, 2.0, 1.0, 2.0, np.inf]), np.array([1.0, 0.0, 0.0, 5.0, 2.0, 3.0])
    orders = [
        list(o)
        for o in permutations(range(6))
        if (np.diff(np.argsort(np.argsort(uncertainty[list(o)]))) > 0).all()
    ]
    assert len(orders) == 2 * 6
    curves = [np.cumsum(error[o]) / np.arange(1, 7) for o in orders]
    np.testing.assert_allclose(
        metrics.risk_coverage(uncertainty, error).risk, np.mean(curves, axis=0), rtol=1e-12
    )


def test_uncertainty_that_says_nothing_has_the_mean_error_as_area():
    error = np.random.default_rng(1).random(30)
    assert metrics.aurc(np.zeros(30), error) == pytest.approx(error.mean())
    assert metrics.aurc(error, error) < error.mean() < metrics.aurc(-error, error)


def test_area_of_a_perfect_order_in_closed_form():
    # of 10 rows the last 4 are wrong: the risk is 0 for 6 rows, then (i - 6) / i
    wrong = np.repeat([0, 1], [6, 4])
    assert metrics.aurc(wrong, wrong) == pytest.approx(sum((i - 6) / i for i in range(7, 11)) / 10)


def test_selective_accuracy():
    uncertainty, correct = (
        torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
        torch.tensor([True, True, False, True, False]),
    )
    values = [metrics.selective_accuracy(uncertainty, correct, c) for c in (0.2, 0.4, 0.41, 0.6, 1.0)]
    assert values == pytest.approx([1, 1, 2 / 3, 2 / 3, 3 / 5])
    # 0.07 of 100 rows are 7 of them, although 0.07 * 100 is above 7 in floating point
    many = np.arange(100)
    assert metrics.selective_accuracy(many, many < 7, 0.07) == 1


def test_decision_is_the_cheapest_action():
    rng = np.random.default_rng(2)
    p, loss = rng.dirichlet(np.ones(4), size=100), rng.normal(size=(6, 4))
    action, cost = metrics.expected_cost_decision(torch.tensor(p), torch.tensor(loss))
    for n in range(100):
        costs = [sum(loss[a, k] * p[n, k] for k in range(4)) for a in range(6)]
        assert action[n] == int(np.argmin(costs))
        assert cost[n] == pytest.approx(min(costs), abs=1e-12)


def test_decision_with_abstaining_is_chows_rule():
    p = np.random.default_rng(3).dirichlet(np.ones(3), size=200)
    loss = np.vstack([1 - np.eye(3), np.full(3, 0.3)])  # an error costs 1, abstaining 0.3
    action = metrics.expected_cost_decision(p, loss).action
    np.testing.assert_array_equal(action, np.where(p.max(1) >= 0.7, p.argmax(1), 3))
    assert 0 < np.mean(action == 3) < 1


def test_refusals():
    p = np.full((2, 3), 1 / 3)
    with pytest.raises(
        ValueError, match=r"loss_matrix: expected shape \[any, 3\], got \(3, 2\); .* pass its .T"
    ):
        metrics.expected_cost_decision(p, np.zeros((3, 2)))
    with pytest.raises(
        ValueError, match=r"loss_matrix: expected shape \[any, 3\], got \(4, 4\); .* the 3 classes"
    ):
        metrics.expected_cost_decision(p, np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"loss_matrix: expected shape \[any, 3\], got \(3,\)"):
        metrics.expected_cost_decision(p, np.zeros(3))
    with pytest.raises(ValueError, match="loss_matrix: expected finite values"):
        metrics.expected_cost_decision(p, np.full((2, 3), np.inf))
    with pytest.raises(ValueError, match="rows that sum to 1"):
        metrics.expected_cost_decision(2 * p / 3, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"one uncertainty and one error per row.* got \(2,\) and \(3,\)"):
        metrics.risk_coverage(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="uncertainty: expected no NaN"):
        metrics.aurc([np.nan], [0.0])
    with pytest.raises(ValueError, match="correct: expected 0 or 1, got 0 to 4"):
        metrics.selective_accuracy([0.1, 0.2], [0, 4], 0.5)
    for coverage in (0.0, 80.0):
        with pytest.raises(ValueError, match="coverage: expected a share above 0 and up to 1"):
            metrics.selective_accuracy([0.1], [1], coverage)
