"""Accuracy, negative log likelihood and Brier score of probabilities of classes or of 0/1 labels.

Classes are `probs [N, K]` with class numbers `targets [N]`. Labels are `probs` and 0/1 `targets` of one
shape, `[N]` (binary) or `[N, T]` (multilabel), with `probs` the probability of a 1.
"""

from __future__ import annotations

import numpy as np

from bll_pyro.metrics.arrays import Array, Values, mean_of_rows, probs_and_targets, real


def accuracy(probs: Values, targets: Values, *, sample_weight: Values | None = None) -> float:
    """Share of correct decisions.

    Classes: rows whose most probable class (the first, if several tie) is the target. Labels: entries of
    `[N, T]` where `probs > 0.5` agrees with the target (one minus the Hamming loss).

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    sample_weight
        Weights `[N]` of the rows, numbers >= 0; a whole number n is equivalent to n equal rows.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN, rows that don't sum to 1, targets out of range.
    """
    p, y = probs_and_targets(probs, targets)
    decision = p.argmax(1) if p.ndim > y.ndim else p > 0.5
    return mean_of_rows(decision == y, sample_weight)


def nll(probs: Values, targets: Values, *, log_probs: bool = False) -> float:
    """Negative log-likelihood of the targets, mean nats per row: `-1/N sum_n log p(y_n)`.

    For labels the log probabilities of a row's T labels are summed. Nothing is clipped: a target with probability 0
    gives infinity. For very small probabilities pass their logarithms.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    log_probs
        Whether the first argument holds `log p` in place of `p`.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN, rows that don't sum to 1, targets out of range, logits in place of
        `log p`.
    """
    log_p = _checked_log_probs(probs) if log_probs else None
    p, y = probs_and_targets(probs if log_p is None else np.exp(log_p), targets)
    with np.errstate(divide="ignore"):  # log 0 is minus infinity
        log_yes = np.log(p) if log_p is None else log_p
        if p.ndim > y.ndim:
            log_row = np.take_along_axis(log_yes, y[:, None], axis=1)[:, 0]
        else:
            log_no = np.log1p(-p) if log_p is None else np.log(-np.expm1(log_p))
            log_row = np.where(y == 1, log_yes, log_no).reshape(len(y), -1).sum(1)
    return float(0.0 - np.mean(log_row))  # 0.0 instead of -0.0 for a perfect score


def brier(probs: Values, targets: Values, *, sample_weight: Values | None = None) -> float:
    """Brier score (Brier 1950): squared error of the probabilities, summed over columns, mean over rows.

    Classes: `1/N sum_n sum_k (p_nk - [y_n = k])^2`, from 0 to 2. Labels: `1/N sum_n sum_t (p_nt - y_nt)^2`,
    from 0 to T; so a binary problem written as two classes has twice the score of the same problem written as
    one label.

    Parameters
    ----------
    probs, targets
        Classes `[N, K]` and `[N]`, or labels `[N]` or `[N, T]` for both.
    sample_weight
        Weights `[N]` of the rows, numbers >= 0; a whole number n is equivalent to n equal rows.

    Raises
    ------
    ValueError
        For shapes that don't match, NaN, rows that don't sum to 1, targets out of range.
    """
    p, y = probs_and_targets(probs, targets)
    truth = y[:, None] == np.arange(p.shape[1]) if p.ndim > y.ndim else y
    return mean_of_rows(((p - truth) ** 2).reshape(len(p), -1).sum(1), sample_weight)


def _checked_log_probs(values: Values) -> Array:
    array = real("log_probs", values, infinite=True)
    if array.max() > 1e-4:
        raise ValueError(
            f"log_probs: expected values up to 0, got {array.max():.6g}; pass log_softmax(logits) (classes) "
            "or logsigmoid(logits) (labels)"
        )
    return np.minimum(array, 0.0)  # a log-probability just above 0 is rounding
