"""Decisions under uncertainty: selective prediction, and the action of least expected cost.

Rows are accepted in the order of increasing uncertainty. Results are exact expectations over a random order of rows with
equal uncertainty, so they do not depend on the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bll_pyro.metrics.arrays import Array, Integers, Values, checked_class_probs, matrix, real, round_up
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class RiskCoverage(Summary):
    """Mean error of the accepted rows against their share.

    Attributes
    ----------
    coverage
        `[N]`, share of rows accepted, `1/N, 2/N, ..., 1`.
    risk
        `[N]`, mean error of the accepted rows.
    """

    coverage: Array
    risk: Array


class Decision(NamedTuple):
    """The action chosen for each row, `[N]`, and its expected cost, `[N]`."""

    action: Integers
    expected_cost: Array


def risk_coverage(uncertainty: Values, error: Values) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv and Wiener 2010): `risk_i = mean error of the i least uncertain rows`.

    Parameters
    ----------
    uncertainty
        `[N]`, larger = more uncertain; infinite allowed.
    error
        `[N]`, loss of each row: 0/1 for classes, a squared or absolute error, a negative log-likelihood, ...

    Raises
    ------
    ValueError
        For shapes that differ or have more than one dimension, NaN.
    """
    u, e = real("uncertainty", uncertainty, infinite=True), real("error", error)
    if u.ndim != 1 or u.shape != e.shape:
        raise ValueError(
            f"expected one uncertainty and one error per row, shape [N] for both, got {u.shape} and {e.shape}; "
            "reduce several outputs to one number per row"
        )
    _, group = np.unique(u, return_inverse=True)
    group_mean = np.bincount(group, e) / np.bincount(group)
    num_accepted = np.arange(1, len(u) + 1)
    return RiskCoverage(num_accepted / len(u), np.cumsum(group_mean[np.sort(group)]) / num_accepted)


def aurc(uncertainty: Values, error: Values) -> float:
    """Area under the risk-coverage curve (Geifman et al. 2019): mean of the risk over the coverages `1/N, ..., 1`.

    Smaller is better; an uninformative uncertainty gives the mean error.

    Parameters
    ----------
    uncertainty, error
        `[N]` each, as in `risk_coverage`.

    Raises
    ------
    ValueError
        As in `risk_coverage`.
    """
    return float(np.mean(risk_coverage(uncertainty, error).risk))


def selective_accuracy(uncertainty: Values, correct: Values, coverage: float) -> float:
    """Accuracy among the `ceil(coverage N)` least uncertain rows.

    Parameters
    ----------
    uncertainty
        `[N]`, larger = more uncertain.
    correct
        `[N]`, true (1) for correct decisions.
    coverage
        Share of rows to accept, in (0, 1].

    Raises
    ------
    ValueError
        For shapes that differ, NaN, `correct` that is not 0 or 1, or `coverage` outside (0, 1].
    """
    is_correct = real("correct", correct)
    if not np.isin(is_correct, (0, 1)).all():
        raise ValueError(
            f"correct: expected 0 or 1, got {is_correct.min():g} to {is_correct.max():g}; pass label == target"
        )
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: expected a share above 0 and up to 1, got {coverage}; 80 % is 0.8")
    accepted = risk_coverage(uncertainty, is_correct).risk  # the mean of 1 for correct rows is the accuracy
    return float(accepted[round_up(coverage * len(is_correct)) - 1])


def expected_cost_decision(probs: Values, loss_matrix: Values) -> Decision:
    """The action of least expected cost for each row (Bayes action; Berger 1985), the first if several tie.

    `expected_cost[n, a] = sum_k loss[a, k] probs[n, k]`. To allow abstention, add an action of constant cost.

    Parameters
    ----------
    probs
        Class probabilities `[N, K]`.
    loss_matrix
        `[A, K]`, cost of action a when the class is k; any number of actions, any unit, gains are negative.

    Raises
    ------
    ValueError
        For a loss matrix that is not `[A, K]`, NaN or infinite costs, rows of `probs` that don't sum to 1.
    """
    p = checked_class_probs("probs", probs)
    cost = p @ matrix("loss_matrix", loss_matrix, p.shape[1]).T
    action = cost.argmin(1)
    return Decision(action, cost.min(1))
