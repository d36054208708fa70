"""The watch over a stream: what it promises, the formula by brute force, and what it refuses."""

import copy
import itertools
import math
import pickle
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

import bll_pyro as bll
from bll_pyro.conformal import p_values
from bll_pyro.conformal.betting import ODDS, Bets, log_stakes, log_values
from bll_pyro.ood import Drift, Verdict


def stream(
    num_calibration: int, num_rows: int, seed: int, shift: float = 0.0, decimals: int = 9
) -> np.ndarray:
    """P-values of rows by a calibration set of their own; rounded scores have ties."""
    random = np.random.default_rng(seed)
    known, new = random.normal(size=num_calibration), random.normal(shift, 1, size=num_rows)
    return p_values(known.round(decimals), new.round(decimals))


def num_alarms(streams: Iterable[np.ndarray], num_calibration: float) -> int:
    return sum(Drift(0.2, num_calibration).update(p) for p in streams)


NUM_RUNS = 200
MOST = binom.ppf(0.999, NUM_RUNS, 0.2)

# ---- the promise


@pytest.mark.parametrize("decimals", [9, 0])
def test_false_alarms_over_the_whole_life_are_at_most_alpha(decimals: int) -> None:
    """Over streams with calibration sets of their own, with and without ties; within what 200 of them can tell."""
    assert num_alarms((stream(20, 400, seed, decimals=decimals) for seed in range(NUM_RUNS)), 20) <= MOST


def test_uniform_p_values_are_another_assumption() -> None:
    """The same streams, taken for uniform: this test would find a watch that forgets the calibration set."""
    assert num_alarms((stream(20, 400, seed) for seed in range(NUM_RUNS)), math.inf) > MOST
    assert num_alarms(np.random.default_rng(0).random((NUM_RUNS, 400)), math.inf) <= MOST


@pytest.mark.parametrize("num_calibration", [1, 19, 100, 5000])
def test_bounds_hold_for_all_but_a_few_calibration_sets(num_calibration: int) -> None:
    """``P(theta > b)`` is the probability that fewer than k of n uniform numbers are below b."""
    bets = Bets.against(num_calibration, 0.01)
    ranks = np.floor(bets.levels * (num_calibration + 1))
    assert ranks[0] == 1 and (np.diff(ranks) > 0).all() and len(ranks) == len(bets.bounds)
    missed = binom.cdf(ranks - 1, num_calibration, bets.bounds)
    np.testing.assert_allclose(missed, 0.01 / len(ranks), rtol=1e-6)


def test_its_mean_is_one_at_the_bounds_and_less_below() -> None:
    """Exactly, over all sequences of four rows: between which levels a row lies has the probabilities that the bounds allow."""
    bets = Bets.against(6, 0.02)

    def mean(bounds: np.ndarray) -> float:
        probs = np.diff(np.concatenate([[0.0], bounds, [1.0]]))
        places = np.append(bets.levels, 1.0)
        total = 0.0
        for path in itertools.product(range(len(probs)), repeat=4):
            stakes = log_stakes(bets.log_factors(places[list(path)]), np.full(bets.num_bets, -np.inf), 0)
            total += np.prod(probs[list(path)]) * math.exp(log_values(stakes, 0)[-1])
        return total

    assert len(bets.levels) == 4
    assert mean(bets.bounds) == pytest.approx(1, rel=1e-12)
    assert mean(0.8 * bets.bounds) < 0.95


# ---- the value


def by_hand(p: np.ndarray, num_calibration: int, alpha: float) -> list[float]:
    """Log values from the definition: one product for each bet and each row at which it may begin."""
    bets = Bets.against(num_calibration, alpha / 2)
    kept = [math.log(2) / math.log(t + 2) for t in range(len(p) + 1)]
    values = []
    for t in range(1, len(p) + 1):
        stakes = []
        for (level, bound), odds in itertools.product(zip(bets.levels, bets.bounds), ODDS):
            factors = [(odds if one <= level else 1.0) / (1 + (odds - 1) * bound) for one in p[:t]]
            stakes.append(sum((kept[j] - kept[j + 1]) * math.prod(factors[j:]) for j in range(t)))
        values.append(math.log(np.mean(stakes) + kept[t]))
    return values


def test_value_alarm_and_history_by_brute_force() -> None:
    p = stream(40, 60, 3, shift=1.5)
    expected = by_hand(p, 40, 0.1)
    drift = Drift(0.1, 40)
    found = []
    for one in p:  # row by row
        drift.update(one)
        found.append(drift.log_value)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    first = int(np.flatnonzero(np.array(expected) >= math.log(20))[0]) + 1
    assert (drift.alarm, drift.alarm_row, drift.threshold) == (True, first, pytest.approx(math.log(20)))
    rows, values = drift.history
    np.testing.assert_array_equal(rows, np.arange(1, 61))
    np.testing.assert_allclose(values, expected, atol=1e-10)
    assert f"at row {first}" in repr(drift)


def test_calls_of_any_size_give_the_same_and_memory_is_constant() -> None:
    p = stream(200, 30_000, 0)
    whole, parts = Drift(num_calibration=200), Drift(num_calibration=200)
    whole.update(p)
    for part in np.split(p, [1, 7, 4000, 4001, 20_000]):
        parts.update(torch.from_numpy(part))
    assert parts.log_value == pytest.approx(whole.log_value, abs=1e-9)
    rows, values = whole.history
    np.testing.assert_allclose(values, parts.history[1], atol=1e-9)
    assert 256 <= len(rows) <= 512 and rows[-1] == whole.rows == 30_000
    before, after = Drift(num_calibration=200), Drift(num_calibration=200)
    before.update(p[:1000])
    after.update(p)
    assert len(pickle.dumps(after)) < len(pickle.dumps(before)) + 8 * 512


def test_a_change_is_seen_soon_after_a_long_quiet_time_and_the_alarm_stays() -> None:
    drift = Drift(num_calibration=1000)
    random = np.random.default_rng(0)
    known = random.normal(size=1000)
    assert not drift.update(p_values(known, random.normal(size=50_000)))
    assert drift.update(p_values(known, random.normal(6, 1, size=20)))
    seen = drift.alarm_row
    assert seen is not None and 50_000 < seen <= 50_015
    drift.update(p_values(known, random.normal(size=20_000)))
    assert drift.alarm and drift.alarm_row == seen and drift.log_value < drift.threshold


def test_workers_together() -> None:
    p = stream(100, 400, 1, shift=1.0)
    workers = [Drift(0.05, 100), Drift(0.05), Drift(0.05)]  # the last two without a row
    workers[0].update(p)
    expected = math.log((math.exp(workers[0].log_value) + 2) / 3)
    assert Drift.mean_log_value(workers) == pytest.approx(expected)
    for others in ([], [Drift(0.1), Drift(0.2)], [Drift(0.1, 9), Drift(0.1, 99)]):
        with pytest.raises(ValueError, match="mean_log_value: expected"):
            Drift.mean_log_value(others)


def test_threads_lose_no_row() -> None:
    together, alone = Drift(num_calibration=19), Drift(num_calibration=19)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(together.update, [[0.5] * 3] * 400))
    alone.update([0.5] * 1200)
    assert together.rows == 1200 and together.log_value == pytest.approx(alone.log_value, abs=1e-9)


def test_saved_copied_and_gone_on_with(tmp_path: Path) -> None:
    p = stream(50, 900, 0, shift=1.5)
    drift = Drift(0.05, 50)
    drift.update(p[:600])
    drift.save(tmp_path / "drift")
    copies = [drift, Drift.load(tmp_path / "drift"), pickle.loads(pickle.dumps(drift)), copy.deepcopy(drift)]
    for one in copies:
        one.update(p[600:])
        assert (repr(one), one.alarm_row) == (repr(drift), drift.alarm_row)
        np.testing.assert_array_equal(one.history, drift.history)
    assert drift.alarm
    content = (tmp_path / "drift").read_bytes()
    (tmp_path / "drift").write_bytes(content.replace(b'\\"rows\\": 600', b'\\"rows\\": 500'))
    assert (tmp_path / "drift").read_bytes() != content
    with pytest.raises(ValueError, match="expected a Drift as it was saved"):
        Drift.load(tmp_path / "drift")
    bare = bll.ood.Detector(calibration_scores=torch.arange(9.0), fingerprint="of some fit")
    bare.save(tmp_path / "detector")
    with pytest.raises(ValueError, match="expected a Drift, got something else"):
        Drift.load(tmp_path / "detector")


# ---- with a detector, and what is refused


def test_verdicts_bring_the_number_of_calibration_rows() -> None:
    detector = bll.ood.Detector(calibration_scores=torch.arange(99.0), fingerprint="of some fit")
    verdict = detector.judge(torch.tensor([3.0, 200.0, 50.5]))
    drift = Drift()
    assert not drift.update(Verdict.concat([verdict, verdict]))
    assert (drift.rows, drift.num_calibration) == (6, 99)
    by_number = Drift(num_calibration=99)
    by_number.update(torch.cat([verdict.p_value, verdict.p_value]).float())
    assert by_number.log_value == drift.log_value
    with pytest.raises(ValueError, match="detector with 99 calibration rows, got one of a detector with 9;"):
        drift.update(replace(detector, alpha=0.2, calibration_scores=torch.arange(9.0)).judge(torch.ones(1)))
    assert drift.rows == 6


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "expected at least one value"),
        ([0.5, math.nan], "expected finite values"),
        ([0.5, 1.5], "expected values from 0 to 1"),
        ([0.5, -0.5], "expected values from 0 to 1"),
        ([0.5, 0.0], "whole multiples of 1 / 20"),
        ([0.5, 0.33], "whole multiples of 1 / 20"),
    ],
)
def test_what_is_no_p_value_is_refused_and_changes_nothing(values: list[float], said: str) -> None:
    drift = Drift(num_calibration=19)
    drift.update([0.5])
    before = drift.log_value
    with pytest.raises(ValueError, match=said):
        drift.update(values)
    assert (drift.rows, drift.log_value) == (1, before)


def test_wrong_declarations() -> None:
    for alpha in (0, 1, -0.1, "x", math.nan):
        with pytest.raises(ValueError, match=r"Drift\(alpha=...\): expected a number between 0 and 1"):
            Drift(alpha)
    for number in (0, -3, 2.5, True, math.nan):
        with pytest.raises(ValueError, match=r"Drift\(num_calibration=...\): expected a whole number"):
            Drift(num_calibration=number)
    with pytest.raises(ValueError, match="unknown number of calibration rows"):
        Drift().update([0.5])
    with pytest.raises(ValueError, match="expected a watch that has seen rows"):
        bll.plots.drift_trace(Drift())


def test_picture() -> None:
    drift = Drift(num_calibration=100)
    drift.update(np.concatenate([stream(100, 900, 0), np.full(100, 1 / 101)]))
    (axes,) = bll.plots.drift_trace(drift).axes
    line, threshold, alarm = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack(drift.history, 1))
    assert threshold.get_ydata()[0] == drift.threshold and alarm.get_xdata()[0] == drift.alarm_row
    assert axes.get_ylim()[1] <= 3 * drift.threshold
