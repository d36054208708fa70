"""The watch over a stream: false alarms over its whole life, and rows until a change is seen."""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import fashion_features, made_up
from benchmarks.ood_scores import training_rows
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

Array = NDArray[np.float64]
ALPHA = 0.01
NUM_STREAMS, NUM_ROWS, CHANGE = 200, 100_000, 80_000
LEARN_ROWS = 1000  # test rows from which the detector learns its score; the others are the known rows
CALIBRATION = (200, 1000, 5000)
SHARES = {"no change": 0.0, "5 % unknown": 0.05, "20 % unknown": 0.2, "all unknown": 1.0}
SOON = 500  # rows within which a change should be seen
OURS, PLAIN, ONLINE = "bll_pyro, ood.Drift", "simple jumper", "simple jumper, online p-values"
JUMP = 0.01
NOTES = [
    f"{NUM_STREAMS} streams of {NUM_ROWS:,} rows at alpha = {ALPHA}. Known rows are the Fashion-MNIST test rows (the default "
    f"detector learned its score from {LEARN_ROWS:,} others and from training rows), unknown ones MNIST digits, both through the "
    "same network. Every stream draws its own calibration rows and its own rows, with replacement, from the same known rows: so "
    "they are independent draws from one distribution, with ties. "
    f"After row {CHANGE:,} the named share of rows is unknown.",
    "False alarms: streams with an alarm before the change, or without a change at all. Rows until the alarm: median over the "
    "streams that had none before the change; a dash where half of them or more never had one.",
    "The simple jumper (Vovk and others; three bets, jumps at a rate of 0.01) assumes uniform p-values. Those of one calibration "
    "set are not, given the set, and it finds that out. Online p-values, ranks among the calibration rows and all earlier rows "
    "with ties broken at random, are uniform, but need every score that ever came; a change becomes usual after a while.",
]


def log_jumper(p_values: Array, capital: Array) -> tuple[Array, Array]:
    """Log values ``[T, R]`` of R simple jumpers on p-values ``[T, R]``, and the capital ``[3, R]`` at the end, in logs."""
    slopes = np.array([-1.0, 0.0, 1.0])[:, None]
    found = np.empty_like(p_values)
    for t, p in enumerate(p_values):
        total = np.logaddexp.reduce(capital, axis=0)
        moved = np.logaddexp(capital + math.log(1 - JUMP), total + math.log(JUMP / 3))
        capital = moved + np.log1p(slopes * (p - 0.5))
        found[t] = np.logaddexp.reduce(capital, axis=0)
    return found, capital


class Ranks:
    """Online p-values of R streams: ranks among all scores so far. Scores are whole numbers below ``size``; larger is stranger."""

    def __init__(self, calibration: NDArray[np.int64], size: int, random: np.random.Generator) -> None:
        self.random, self.num_seen = random, calibration.shape[1]
        counts = np.stack([np.bincount(row, minlength=size) for row in calibration])
        self.width = math.ceil(math.sqrt(size))
        counts = np.pad(counts, [(0, 0), (0, self.width**2 - size)])
        self.counts = counts.reshape(len(calibration), self.width, self.width)
        self.sums = self.counts.sum(2)  # of a block each, so that a row costs a root of the size
        self.streams = np.arange(len(calibration))

    def take(self, scores: NDArray[np.int64]) -> Array:
        """P-values ``[R]`` of a further score in each stream."""
        block, place = scores // self.width, scores % self.width
        within = self.counts[self.streams, block]
        columns = np.arange(self.width)
        above = (self.sums * (columns > block[:, None])).sum(1) + (within * (columns > place[:, None])).sum(1)
        ties = 1 + within[self.streams, place]
        self.counts[self.streams, block, place] += 1
        self.sums[self.streams, block] += 1
        self.num_seen += 1
        found: Array = (above + ties * self.random.random(len(scores))) / self.num_seen
        return found


class Streams:
    """Ranks of scores: calibration ``[R, n]``, the stream before the change, and after it for every share of unknown rows."""

    def __init__(self, known: Array, unknown: Array, num_calibration: int, options: Options) -> None:
        self.small = options.small
        self.num = 4 if options.small else NUM_STREAMS
        before, after = (500, 300) if options.small else (CHANGE, NUM_ROWS - CHANGE)
        random = np.random.default_rng(num_calibration)
        ranks = np.unique(np.concatenate([known, unknown]), return_inverse=True)[1]
        self.size = int(ranks.max()) + 1
        known_ranks, unknown_ranks = ranks[: len(known)], ranks[len(known) :]
        self.calibration = random.choice(known_ranks, (self.num, num_calibration))
        self.before = random.choice(known_ranks, (self.num, before))
        self.after = {}
        for name, share in SHARES.items():
            rows = random.choice(known_ranks, (self.num, after))
            strange = random.random(rows.shape) < share
            self.after[name] = np.where(strange, random.choice(unknown_ranks, rows.shape), rows)
        self.random = random

    def p_values(self, rows: NDArray[np.int64]) -> Array:
        """P-values of a detector with the stream's own calibration rows."""
        from bll_pyro.conformal import p_values

        return np.stack([p_values(known, row) for known, row in zip(self.calibration, rows)])


Alarms = dict[
    str, tuple[NDArray[np.bool_], Array]
]  # by share: alarm before the change; rows from it to the alarm, or infinity


def ours(streams: Streams) -> Alarms:
    """Alarms of :class:`bll_pyro.ood.Drift`."""
    import bll_pyro as bll

    rows: dict[str, list[float]] = {name: [] for name in SHARES}
    before = streams.p_values(streams.before)
    after = {name: streams.p_values(found) for name, found in streams.after.items()}
    for number in range(streams.num):
        watch = bll.ood.Drift(ALPHA, streams.calibration.shape[1])
        watch.update(before[number])
        for name in SHARES:
            branch = copy.deepcopy(watch)
            branch.update(after[name][number])
            rows[name].append((branch.alarm_row or math.inf) - before.shape[1])
    return {name: (np.array(found) <= 0, np.array(found, float)) for name, found in rows.items()}


def jumpers(streams: Streams, online: bool) -> Alarms:
    """Alarms of simple jumpers, on the detector's p-values or on online ones."""
    start = np.full((3, streams.num), -math.log(3))
    seen = Ranks(streams.calibration, streams.size, streams.random)

    def values(rows: NDArray[np.int64], seen: Ranks) -> Array:
        return np.stack([seen.take(scores) for scores in rows.T]) if online else streams.p_values(rows).T

    logs, capital = log_jumper(values(streams.before, seen), start)
    early = (logs >= -math.log(ALPHA)).any(0)
    found = {}
    for name, rows in streams.after.items():
        reached = log_jumper(values(rows, copy.deepcopy(seen)), capital)[0] >= -math.log(ALPHA)
        found[name] = (early, np.where(reached.any(0), reached.argmax(0) + 1.0, math.inf))
    return found


WATCHES: dict[str, Callable[[Streams], Alarms]] = {
    OURS: ours,
    PLAIN: lambda streams: jumpers(streams, online=False),
    ONLINE: lambda streams: jumpers(streams, online=True),
}


def scores_of(options: Options) -> tuple[Array, Array]:
    """Scores of the known and the unknown rows, by the default detector of the default fit."""
    import bll_pyro as bll

    task = made_up(600, 8, 3, num_test_rows=400) if options.small else fashion_features()
    learn = 200 if options.small else LEARN_ROWS
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=task.num_classes))
    fit = bll.fit(layer, (task.train_features, task.train_targets))
    detector = bll.ood.Detector().calibrate(fit, task.test_features[:learn], train=training_rows(task))
    known, unknown = (detector.detect(rows).score for rows in (task.test_features[learn:], task.ood_features))
    return known.double().numpy(), unknown.double().numpy()


def summary(found: Alarms) -> dict[str, Any]:
    """Shares and medians over the streams."""
    early, rows = found["no change"]
    row: dict[str, Any] = {"false": float((early | np.isfinite(rows)).mean())}
    for name in list(SHARES)[1:]:
        early, rows = found[name]
        rows = rows[~early]
        median = float(np.median(rows)) if len(rows) else math.inf
        row[f"{name}, rows"] = median if math.isfinite(median) else None
        row[f"{name}, soon"] = float((rows <= SOON).mean()) if len(rows) else None
        row[f"{name}, rounds"] = [None if math.isinf(one) else float(one) for one in rows]
    return row


def run(options: Options) -> Report:
    """All watches at all numbers of calibration rows."""
    from scipy.stats import binom

    report = Report("drift", "A watch over the p-values of a stream", notes=NOTES)
    columns = {"method": "watch", "n": "calibration rows", "false": "streams with a false alarm"}
    for name in list(SHARES)[1:]:
        columns |= {f"{name}, rows": f"{name}: rows until the alarm", f"{name}, soon": f"seen within {SOON}"}
    table = Table("Alarms", columns)
    known, unknown = scores_of(options)
    for num_calibration in (50,) if options.small else CALIBRATION:
        streams = Streams(known, unknown, num_calibration, options)
        for name, watch in WATCHES.items():
            if options.keeps(name):
                table.rows.append({"method": name, "n": num_calibration} | summary(watch(streams)))
                print(f"drift: {name}, {num_calibration} calibration rows", file=sys.stderr, flush=True)
    report.tables.append(table)
    own = [row for row in table.rows if row["method"] == OURS]
    allowed = float(binom.ppf(0.975, streams.num, ALPHA)) / streams.num
    report.targets += [
        Target(
            "streams with a false alarm, worst (1 % and binomial noise)",
            max(r["false"] for r in own),
            allowed,
        ),
        Target(
            f"all unknown: seen within {SOON} rows, worst",
            min(r["all unknown, soon"] for r in own),
            0.95,
            ">=",
        ),
    ]
    return report
