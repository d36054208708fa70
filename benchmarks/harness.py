"""Timing by interleaved runs: medians, quartiles, and ratios of medians against a named reference.

The load of a machine changes within seconds. Interleaved methods are affected by it alike; methods measured one after the
other are not. So every method runs once per round, each round starts with another method, and ratios are formed within a
round before their quartiles are taken.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Measure = Callable[[], float]
"""Runs the work once and returns the measured seconds."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Take the three quartiles of some numbers."""
        lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(median), float(lower), float(upper))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})"


@dataclass(frozen=True)
class Timing:
    """Seconds of one method, one number for each round."""

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median and quartiles of the seconds."""
        return Spread.of(np.array(self.seconds))

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return self.spread.median


def ratio(timing: Timing, reference: Timing) -> Spread:
    """Ratio of the two medians; its quartiles are those of the ratios within each round."""
    if len(timing.seconds) != len(reference.seconds):
        raise ValueError(
            f"Expected timings of the same rounds, got {len(timing.seconds)} and {len(reference.seconds)} of them; "
            "take both out of one call of interleave."
        )
    paired = Spread.of(np.array(timing.seconds) / np.array(reference.seconds))
    return Spread(timing.median / reference.median, paired.lower, paired.upper)


def repeated(work: Callable[[], object], num_calls: int) -> Measure:
    """Measure seconds per call over a block of calls."""

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(num_calls):
            work()
        return (time.perf_counter() - began) / num_calls

    return measure


def repeated_for(work: Callable[[], object], seconds: float, *, max_calls: int = 10_000) -> Measure:
    """Measure seconds per call over a block of about ``seconds``, after one call as warm-up."""
    work()
    once = repeated(work, 1)()
    return repeated(work, max(1, min(max_calls, round(seconds / max(once, 1e-9)))))


def interleave(measures: Mapping[str, Measure], num_runs: int, *, num_warm_ups: int = 1) -> dict[str, Timing]:
    """Run every measure once per round; round ``r`` starts with measure ``r`` and continues cyclically.

    Parameters
    ----------
    measures : mapping of str to callable
        Measures by name.
    num_runs : int
        Number of rounds.
    num_warm_ups : int
        Number of earlier rounds that are not counted.
    """
    if num_runs < 1:
        raise ValueError(f"Expected num_runs >= 1, got {num_runs}.")
    names = list(measures)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-num_warm_ups, num_runs):
        shift = round_number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            gc.collect()  # so that garbage of one method is not collected in the time of another
            taken = measures[name]()
            if round_number >= 0:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def growth_exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost against log size by least squares: 1 for linear growth.

    Fixed costs reduce the slope at small sizes, so it is fitted to the larger half of the sizes (at least three).
    """
    if len(sizes) != len(costs) or len(sizes) < 2:
        raise ValueError(f"Expected as many costs as sizes, two at least, got {len(sizes)} and {len(costs)}.")
    keep = max(min(3, len(sizes)), (len(sizes) + 1) // 2)
    return float(np.polyfit(np.log(sizes[-keep:]), np.log(costs[-keep:]), 1)[0])
