r"""Bets that p-values are too small, whose gain says at any time how much speaks for it (test supermartingales).

P-values of one calibration set of n rows are not uniform, given this set: the share of known rows with a p-value of at most
``k / (n + 1)`` is some :math:`\theta_k`, the same for all rows to come. A bet against uniform p-values would in the end win by
that alone. So bets are against bounds of :math:`\theta_k` that hold for all levels at once, but for a few of all calibration sets:

.. math::
    P(\theta_k > b_k) \le \delta / G \quad (k = k_1, \ldots, k_G), \qquad
    b_k \text{ the } 1 - \delta / G \text{ quantile of } \mathrm{Beta}(k, n + 1 - k)

The row is above the k-th largest calibration score, so :math:`\theta_k` is its tail probability: the k-th smallest of n uniform
numbers for a continuous score, and less with ties. A bet of odds :math:`\rho > 1` on a level multiplies its stake by

.. math:: f(p) = \rho^{[p \le k / (n + 1)]} / (1 + (\rho - 1) b_k), \qquad E f \le 1 \text{ wherever } \theta_k \le b_k.

The first stake is 1. Before row t the share :math:`w_t` of it is put on the bets, the same on each, and what was won stays there
(Vovk, Nouretdinov and Gammerman 2003 bet all at once; Shin, Ramdas and Rinaldo 2024 begin anew at every row):

.. math::
    S_t = f(p_t) (S_{t-1} + w_t), \qquad M_t = \mathrm{mean}(S_t) + \sum_{j > t} w_j, \qquad
    \sum_{j > t} w_j = \frac{\log 2}{\log(t + 2)}.

Stakes of the present are small, but never gone: after t quiet rows they cost about ``log t + 2 log log t`` nats, whatever the
bets lost before. M begins at 1 and has :math:`E(M_t \mid \text{earlier rows}) \le M_{t-1}`, so it ever reaches 1 / a with
probability at most a (Ville 1939).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from bll_pyro.metrics.arrays import Array

NUM_LEVELS = 5
LOWEST_LEVEL = 1e-3  # of p-values that are uniform
ODDS = np.array([2.0, 8.0, 64.0])  # for rows that are a little, much, and very much too often below a level


@dataclass(frozen=True, eq=False)
class Bets:
    """Bets on levels of the p-value; there are G levels, with every odds on each.

    Parameters
    ----------
    levels
        Increasing, ``[G]``: a bet wins where the p-value is at most its level.
    bounds
        What the probability of that is at most, ``[G]``.
    """

    levels: Array
    bounds: Array

    @classmethod
    def against(cls, num_calibration: float, miss: float) -> Self:
        """Bets against p-values of n calibration rows, an infinite number for uniform ones.

        Parameters
        ----------
        num_calibration
            n, from 1 on.
        miss
            Probability with which a calibration set may have bounds that do not all hold; not used where n is infinite.
        """
        from scipy.special import betaincinv

        if math.isinf(num_calibration):
            levels = np.geomspace(LOWEST_LEVEL, 0.5, NUM_LEVELS)
            return cls(levels, levels)
        ranks = np.unique(np.geomspace(1, max(1.0, (num_calibration + 1) / 2), NUM_LEVELS).round())
        bounds = betaincinv(ranks, num_calibration + 1 - ranks, 1 - miss / len(ranks))
        # half a step above: p-values are whole steps, up to rounding
        return cls((ranks + 0.5) / (num_calibration + 1), bounds)

    @property
    def num_bets(self) -> int:
        """How many there are."""
        return len(self.levels) * len(ODDS)

    def log_factors(self, p_values: Array) -> Array:
        """``log f`` of every bet, ``[T, 3 G]``, for p-values ``[T]``."""
        won = p_values[:, None, None] <= self.levels[:, None]
        return np.asarray(won * np.log(ODDS) - np.log1p((ODDS - 1) * self.bounds[:, None])).reshape(
            len(p_values), -1
        )


def log_stakes(log_factors: Array, before: Array, num_before: int) -> Array:
    """``log S_t`` of every bet for T further rows, ``[T, E]``.

    Parameters
    ----------
    log_factors
        ``[T, E]``, from :meth:`Bets.log_factors`.
    before
        ``log S`` after the rows before, ``[E]``; minus infinity if there were none.
    num_before
        Number of rows before.
    """
    # S_t / F_t = S_0 + sum_{j <= t} w_j / F_{j-1}, with F the product of the factors
    product = log_factors.cumsum(0)
    put = _log_put(num_before + np.arange(1.0, len(product) + 1))[:, None] - (product - log_factors)
    put[0] = np.logaddexp(put[0], before)
    return np.asarray(product + np.logaddexp.accumulate(put))


def log_values(stakes: Array, num_before: int) -> Array:
    """``log M_t`` ``[T]`` of the stakes ``log S_t`` ``[T, E]``."""
    rows = num_before + np.arange(1.0, len(stakes) + 1)
    kept = np.log(math.log(2) / np.log(rows + 2))
    highest = np.maximum(stakes.max(1), kept)
    won = np.exp(stakes - highest[:, None]).mean(1)
    return np.asarray(highest + np.log(won + np.exp(kept - highest)))


def _log_put(rows: Array) -> Array:
    """``log w_t``: what is kept for later before row t, less what is kept after it, without cancellation."""
    put = math.log(2) * np.log1p(1 / (rows + 1)) / (np.log(rows + 1) * np.log(rows + 2))
    return np.asarray(np.log(put))
