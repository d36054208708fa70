"""Results of leave-one-out in output space, as ArviZ takes them. Imports ArviZ: load it where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from arviz_stats.utils import ELPDDataLOO, ELPDDataLOOSubsample

_TABLE = """
------

Influence: share of each row's precision that comes from the row itself (instead of Pareto k):
{:<22} {:>8} {:>7}
{:<22} {:>8} {:>6.1f}%
{:<22} {:>8} {:>6.1f}%
"""


class _Influence:
    """Base of both results: influence takes the place of Pareto k, and has its own table."""

    pareto_k: Any
    good_k: float
    elpd_i: Any

    @property
    def influence(self) -> Any:
        """Share of each row's precision that is its own: below 1, and high from ``good_k`` on."""
        return self.pareto_k

    @property
    def flagged(self) -> np.ndarray:
        """Numbers of the rows whose influence is high."""
        return np.flatnonzero(np.nan_to_num(np.asarray(self.pareto_k)) > self.good_k)

    def _footer(self) -> str:
        influence = np.asarray(self.pareto_k)
        influence = influence[np.isfinite(influence)]
        high = int((influence > self.good_k).sum())
        share = 100 * high / len(influence)
        limit = f"{self.good_k:.2f}"
        return _TABLE.format(
            "", "Count", "Pct.", f"(0, {limit}]   (good)", len(influence) - high, 100 - share, f"({limit}, ...) (high)", high, share
        )  # fmt: skip


@dataclass(kw_only=True, repr=False)
class OutputSpaceLOO(_Influence, ELPDDataLOO):
    """Leave-one-out in output space.

    ``elpd_i`` holds the log predictive densities of the rows, ``pareto_k`` their influence (also ``influence``).
    """

    def _header(self) -> str:
        return f"Leave-one-out in output space: {self.n_data_points} rows, {self.n_samples} points a row."


@dataclass(kw_only=True, repr=False)
class OutputSpaceLOOSubsample(_Influence, ELPDDataLOOSubsample):
    """Leave-one-out in output space for some of the rows.

    ``elpd_i`` and ``pareto_k`` are NaN for rows that were not chosen; ``elpd_loo_approx`` has the log densities of all
    rows under the whole posterior.
    """

    def _header(self) -> str:
        return (
            f"Leave-one-out in output space: {self.subsample_size} of {self.n_data_points} rows, "
            f"{self.n_samples} points a row."
        )
