"""Numbers of many processes as those of one, and one watch over the rows of all."""

import numpy as np
import pytest
from service_cases import rows, softmax_of

from bll_pyro.ood import Drift
from bll_pyro.serve.monitoring import Monitor
from bll_pyro.serve.summing import KEPT_SECONDS, LIVE_SECONDS, Outbox, SummedNumbers

VERSION = ("a fit", 500)


class Process:
    """A process with its numbers."""

    def __init__(self, source: str) -> None:
        self.monitor, self.outbox = Monitor(), Outbox(source)
        self.monitor.running.inc()
        self.monitor.queued_rows.labels("m").inc(3)

    def serve(self, num_rows: int) -> None:
        self.monitor.predicted("m", softmax_of(rows(num_rows)))
        self.monitor.answered("/predict", 200, 0.02)


def sample(sums: SummedNumbers, name: str, now: float) -> float:
    (line,) = [line for line in sums.text(now).decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


ROWS, RUNNING = 'bll_rows_total{model="m"}', "bll_requests_running"
QUEUED, COUNT = 'bll_queued_rows{model="m"}', 'bll_request_seconds_count{path="/predict"}'


def test_totals_stay_and_gauges_are_of_those_that_live() -> None:
    sums, one, two = SummedNumbers(0.0), Process("one"), Process("two")
    for process, num_rows in ((one, 5), (two, 7)):
        process.serve(num_rows)
        sums.add(process.outbox.report(process.monitor), 0.0)
    assert [sample(sums, name, 1.0) for name in (ROWS, RUNNING, QUEUED, COUNT)] == [12, 2, 6, 2]
    two.serve(2)
    late = LIVE_SECONDS + 1
    sums.add(two.outbox.report(two.monitor), late)
    assert [sample(sums, name, late) for name in (ROWS, RUNNING, QUEUED, COUNT)] == [14, 1, 3, 3]
    for later in (
        late + 2 * KEPT_SECONDS,
        late + 3 * KEPT_SECONDS,
    ):  # both have ended, and are forgotten one by one
        assert [sample(sums, name, later) for name in (ROWS, RUNNING, COUNT)] == [14, 0, 3]
    three = Process("three")
    three.serve(1)
    sums.add(three.outbox.report(three.monitor), later)
    assert sample(sums, ROWS, later) == 15
    assert b"_created" not in sums.text(later)


def test_a_report_that_comes_twice_counts_once() -> None:
    sums, process = SummedNumbers(0.5), Process("one")
    process.outbox.begin("m", VERSION)
    process.outbox.update("m", np.full(4, 150 / 501))
    report = process.outbox.report(process.monitor)
    for _ in range(2):
        sums.add(report, 0.0)
    watch = Drift(0.5, VERSION[1])
    watch.update(np.full(4, 150 / 501))
    assert sample(sums, 'bll_drift_log_value{model="m"}', 0.0) == pytest.approx(watch.log_value, rel=1e-12)
    assert not process.outbox.report(process.monitor).p_values


def test_the_watch_sees_the_rows_of_all() -> None:
    """Neither process alone has seen enough."""
    sums, watch = SummedNumbers(0.01), Drift(0.01, VERSION[1])
    processes = [Process("one"), Process("two")]
    for process in processes:
        process.outbox.begin("m", VERSION)
    alone = Drift(0.01, VERSION[1])
    while not alone.alarm:
        alone.update(np.full(1, 10 / 501))
    parts = np.array_split(np.full(alone.rows, 10 / 501), 2)
    for process, part in zip(processes, parts, strict=True):
        process.outbox.update("m", part)
        sums.add(process.outbox.report(process.monitor), 0.0)
        watch.update(part)
    assert sample(sums, 'bll_drift_alarm{model="m"}', 0.0) == 1
    assert sample(sums, 'bll_drift_log_value{model="m"}', 0.0) == pytest.approx(watch.log_value, rel=1e-12)
    assert min(len(part) for part in parts) > 1


def test_a_model_that_is_being_replaced_tells_nothing_of_the_new_one() -> None:
    sums, old, new = SummedNumbers(0.01), Process("old"), Process("new")
    old.outbox.begin("m", VERSION)
    new.outbox.begin("m", ("another fit", 500))
    for process in (old, new):
        sums.add(process.outbox.report(process.monitor), 0.0)
    old.outbox.update("m", np.full(50, 10 / 501))
    sums.add(old.outbox.report(old.monitor), 1.0)
    assert sample(sums, 'bll_drift_log_value{model="m"}', 1.0) == 0
    new.outbox.update("m", np.full(50, 10 / 501))
    sums.add(new.outbox.report(new.monitor), 1.0)
    assert sample(sums, 'bll_drift_alarm{model="m"}', 1.0) == 1


def test_without_alpha_or_detector_nothing_is_watched() -> None:
    for alpha, version in ((0.0, VERSION), (0.01, None)):
        sums, process = SummedNumbers(alpha), Process("one")
        process.outbox.begin("m", version)
        process.outbox.update("m", np.full(50, 10 / 501))
        sums.add(process.outbox.report(process.monitor), 0.0)
        assert b"bll_drift_alarm{" not in sums.text(0.0)
