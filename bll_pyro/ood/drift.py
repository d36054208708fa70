"""Drift: whether the rows of a stream are stranger than known rows are, with an alarm that can be trusted at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch

from bll_pyro.calibrated import read_plain, write_plain
from bll_pyro.checks import message, share
from bll_pyro.conformal.betting import Bets, log_stakes, log_values
from bll_pyro.metrics.arrays import Array, unit
from bll_pyro.prediction.verdict import Verdict
from bll_pyro.summary import Summary

MOST_POINTS = 512  # of the history
ROWS_AT_ONCE = 4096
ROUNDING = 1e-6  # of a p-value, in float32
NOTED = ("alpha", "num_calibration", "rows", "alarm_row", "log_value")  # what a file holds beside arrays


class Drift(Summary):
    """A watch over the p-values of a detector, row after row: its value grows while rows are strange.

    The value is a test supermartingale. The alarm is raised where it reaches ``2 / alpha``, and stays. **For a stream without a
    change it is ever raised, however long the stream is, with probability at most alpha**: half of it is for calibration sets
    that happen to be odd, and half for streams. *Without a change* means that the calibration rows are independent draws from
    the known rows, and that the probability of a row as strange as this is, given all rows before, at most that of a known row.
    This holds for any score, with ties, for calls of any sizes, and whenever one looks. Formulas and proof are in
    :mod:`bll_pyro.conformal.betting`.

    A stream in another order than chance, by class, camera or hour, does change. Not looked for are changes that make rows more
    usual, and not seen those that n calibration rows leave open: they tell the share of rows with a p-value of at most ``u`` to
    about ``3 sqrt(u (1 - u) / n)``.

    Parameters
    ----------
    alpha
        Probability of an alarm over the whole life of a stream without a change, between 0 and 1.
    num_calibration
        Number n of calibration rows of the detector. None: that of the first verdict. ``math.inf``: p-values from elsewhere
        that are, given all rows before, at most ``u`` with probability ``u`` or less, as those of online conformal prediction;
        the alarm is then at ``1 / alpha``.

    Attributes
    ----------
    rows
        Number of rows so far.
    log_value
        Logarithm of the value, 0 at the start.
    alarm_row
        The row at which the alarm was raised, counted from 1; None before.

    Raises
    ------
    ValueError
        If ``alpha`` or ``num_calibration`` is out of range.
    """

    def __init__(self, alpha: float = 0.01, num_calibration: float | None = None) -> None:
        self.alpha = share(alpha, "alpha", "Drift", "1 % is 0.01")
        self.num_calibration: float | None = None
        self.rows = 0
        self.log_value = 0.0
        self.alarm_row: int | None = None
        self._bets: Bets | None = None
        self._stakes: Array = np.empty(0)  # logarithms, of each bet
        self._peaks: Array = np.empty(0)  # the highest value in each block of so many rows
        self._block = 1
        self._lock = Lock()
        if num_calibration is not None:
            self._begin(num_calibration)

    @property
    def alarm(self) -> bool:
        """Whether the alarm has been raised."""
        return self.alarm_row is not None

    @property
    def threshold(self) -> float:
        """The ``log_value`` at which the alarm is raised."""
        return -math.log(self.alpha if self.num_calibration == math.inf else self.alpha / 2)

    @property
    def history(self) -> tuple[Array, Array]:
        """Numbers of rows ``[P]``, and the highest ``log_value`` ``[P]`` since the one before; P is at most 512."""
        with self._lock:
            ends = np.minimum(np.arange(1.0, len(self._peaks) + 1) * self._block, self.rows)
            return ends, self._peaks.copy()

    def update(self, p_values: Any) -> bool:
        """Take further rows into account, in the order in which they came; threads may call it at the same time.

        Parameters
        ----------
        p_values
            The verdict on the rows, from ``fit.predict(rows).ood`` or ``detector.detect(rows)``, or their p-values ``[N]``.

        Returns
        -------
        bool
            Whether the alarm has been raised, now or before.

        Raises
        ------
        ValueError
            If there are no rows, or a value is no p-value of a detector with this number of calibration rows. Then nothing changes.
        """
        is_verdict = isinstance(p_values, Verdict)
        values = unit("Drift.update", p_values.p_value if is_verdict else p_values).reshape(-1)
        with self._lock:
            num_calibration = p_values.num_calibration if is_verdict else self.num_calibration
            if self.num_calibration not in (None, num_calibration):
                raise ValueError(
                    f"Drift.update: expected a verdict of the detector with {self.num_calibration} calibration rows, got one of a "
                    f"detector with {num_calibration}; begin a new Drift() for another detector"
                )
            self._check_steps(values, num_calibration)
            if self.num_calibration is None:
                self._begin(num_calibration)
            for part in np.split(values, range(ROWS_AT_ONCE, len(values), ROWS_AT_ONCE)):
                self._take(part)
            return self.alarm

    def lines(self) -> dict[str, str]:
        """What to print."""
        alarm = f"at row {self.alarm_row:,}" if self.alarm else "none"
        return {
            "alpha": f"{self.alpha:g}",
            "rows": f"{self.rows:,}",
            "log value": f"{self.log_value:.4g} (alarm at {self.threshold:.4g})",
            "alarm": alarm,
        }

    @staticmethod
    def mean_log_value(drifts: Sequence[Drift]) -> float:
        """Log of the mean value of several watches, each over its own share of the rows, as the workers of a service have.

        A mean of test supermartingales is one. So the probability that this number ever reaches the ``threshold`` is at most
        ``alpha`` for all workers together, where the alarms of W workers would have up to ``W alpha``. It costs at most ``log
        W`` nats.

        Raises
        ------
        ValueError
            If there are none, or they differ in ``alpha`` or in the number of calibration rows.
        """
        if not drifts:
            raise ValueError("Drift.mean_log_value: expected at least one watch, got none")
        alphas = {one.alpha for one in drifts}
        numbers = {one.num_calibration for one in drifts if one.num_calibration is not None}
        if len(alphas) > 1 or len(numbers) > 1:
            raise ValueError(
                f"Drift.mean_log_value: expected watches with one alpha over one detector, got alpha {sorted(alphas)} and "
                f"{sorted(numbers)} calibration rows; declare them alike"
            )
        return float(np.logaddexp.reduce([one.log_value for one in drifts]) - math.log(len(drifts)))

    def save(self, path: str | Path) -> None:
        """Write the state as one safetensors file, which replaces an earlier one; it holds no row."""
        with self._lock:
            plain, arrays = self._state()
        write_plain(
            path, plain, {name: torch.from_numpy(array) for name, array in arrays.items()}, "ood.Drift"
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote, to go on from there; ValueError if the file is missing, truncated or altered."""
        plain, tensors = read_plain(path, "Drift")
        if not isinstance(plain, dict) or plain.get("class") != "ood.Drift":
            raise ValueError(f"load: expected a Drift, got something else in {path}")
        made = cls.__new__(cls)
        made.__setstate__((plain, {name: tensor.numpy() for name, tensor in tensors.items()}))
        return made

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Array]]:
        with self._lock:
            return self._state()

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Array]]) -> None:
        plain, arrays = state
        self.__init__(plain["alpha"], plain["num_calibration"])  # type: ignore[misc]
        vars(self).update({name: plain[name] for name in NOTED}, _block=plain["block"])
        self._stakes, self._peaks = arrays["stakes"], arrays["peaks"]

    def _state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        plain = {name: getattr(self, name) for name in NOTED}
        return {"class": "ood.Drift", "block": self._block, **plain}, {
            "stakes": self._stakes.copy(),
            "peaks": self._peaks.copy(),
        }

    def _begin(self, num_calibration: Any) -> None:
        is_count = isinstance(num_calibration, Real) and not isinstance(num_calibration, bool)
        if not is_count or not num_calibration >= 1 or num_calibration % 1 > 0:
            raise ValueError(
                message(
                    "num_calibration",
                    "Drift",
                    "a whole number >= 1, or math.inf",
                    num_calibration,
                    "it is len(detector.calibration_scores)",
                )
            )
        self.num_calibration = num_calibration
        self._bets = Bets.against(float(num_calibration), self.alpha / 2)
        self._stakes = np.full(self._bets.num_bets, -np.inf)

    def _check_steps(self, values: Array, num_calibration: Any) -> None:
        if num_calibration is None:
            raise ValueError(
                "Drift.update: expected a verdict, got p-values of an unknown number of calibration rows, which bounds their "
                "distribution; declare Drift(num_calibration=len(detector.calibration_scores)), or math.inf for uniform p-values"
            )
        if math.isinf(num_calibration):
            return
        steps = values * (num_calibration + 1)
        wrong = (np.abs(steps - steps.round()) > ROUNDING * (num_calibration + 1)) | (steps < 0.5)
        if wrong.any():
            raise ValueError(
                f"Drift.update: expected whole multiples of 1 / {num_calibration + 1}, as the p-values of a detector with "
                f"{num_calibration} calibration rows are, got {values[wrong][0]:.6g}; give the number of rows of this detector"
            )

    def _take(self, values: Array) -> None:
        assert self._bets is not None
        stakes = log_stakes(self._bets.log_factors(values), self._stakes, self.rows)
        logs = log_values(stakes, self.rows)
        self._remember(logs)
        reached = np.flatnonzero(logs >= self.threshold)
        if self.alarm_row is None and len(reached):
            self.alarm_row = self.rows + int(reached[0]) + 1
        self._stakes, self.log_value = stakes[-1], float(logs[-1])
        self.rows += len(values)

    def _remember(self, logs: Array) -> None:
        """Keep the highest value of each block; blocks become longer as rows become more."""
        last = self.rows + len(logs) - 1
        while last // self._block >= MOST_POINTS:
            pairs = np.append(self._peaks, [-np.inf] * (len(self._peaks) % 2)).reshape(-1, 2)
            self._peaks, self._block = pairs.max(1), 2 * self._block
        peaks = np.full(last // self._block + 1, -np.inf)
        peaks[: len(self._peaks)] = self._peaks
        np.maximum.at(peaks, np.arange(self.rows, last + 1) // self._block, logs)
        self._peaks = peaks
