"""``SummedNumbers``: the numbers of many processes as those of one service, with one watch for drift over all of their rows.

Each process sends a :class:`NumbersReport` of its :class:`Outbox` every so often. Counters and histograms are added, also those of
processes that have ended, so that no total goes down; gauges only over the processes that are there.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from bll_pyro.serve.logs import tell
from bll_pyro.serve.monitoring import Monitor
from bll_pyro.serve.watching import Version, Watches

LIVE_SECONDS = 5.0  # a process that is silent for longer does not count as there
KEPT_SECONDS = 600.0  # after which its totals are added to those of all that have ended
MOST_KEPT = 2**20  # p-values of a model that wait to be sent

SampleKey = tuple[str, tuple[tuple[str, str], ...]]  # name and labels of a sample


@dataclass(frozen=True)
class Family:
    """One number with all of its labels.

    Parameters
    ----------
    name, documentation, kind
        As Prometheus has them.
    values
        By name and labels of the sample.
    """

    name: str
    documentation: str
    kind: str
    values: Mapping[SampleKey, float]


@dataclass(frozen=True)
class NumbersReport:
    """What a process has to tell.

    Parameters
    ----------
    source, number
        Name of the process, and how many reports it has made: one that comes twice counts once.
    families
        All of its numbers.
    versions
        When a model was loaded, in seconds since 1970, and which version, by name.
    p_values
        ``[n]`` since the report before, by name and version.
    """

    source: str
    number: int
    families: tuple[Family, ...]
    versions: Mapping[str, tuple[float, Version | None]] = field(default_factory=dict)
    p_values: Mapping[tuple[str, Version], np.ndarray] = field(default_factory=dict)


class Outbox:
    """Collects what a process has to tell; its ``begin`` and ``update`` are those of watches.

    Parameters
    ----------
    source
        Name of the process.
    """

    def __init__(self, source: str) -> None:
        self.source, self.number = source, 0
        self._versions: dict[str, tuple[float, Version | None]] = {}
        self._waiting: dict[tuple[str, Version], list[np.ndarray]] = defaultdict(list)
        self._lock = threading.Lock()

    def begin(self, name: str, version: Version | None) -> None:
        """A model was loaded."""
        self._versions[name] = time.time(), version

    def update(self, name: str, p_values: np.ndarray) -> None:
        """A batch was predicted."""
        _, version = self._versions[name]
        if version is None:
            return
        with self._lock:
            waiting = self._waiting[name, version]
            if sum(map(len, waiting)) + len(p_values) <= MOST_KEPT:
                waiting.append(np.asarray(p_values))
            else:  # nobody takes them; which are left out does not depend on what they are
                tell("p-values left out", model=name, num_rows=len(p_values))

    def report(self, monitor: Monitor) -> NumbersReport:
        """The next report. What is in it is not sent again."""
        with self._lock:
            waiting, self._waiting = self._waiting, defaultdict(list)
        self.number += 1
        return NumbersReport(
            self.source,
            self.number,
            families_of(monitor),
            dict(self._versions),
            {key: np.concatenate(parts) for key, parts in waiting.items()},
        )


def families_of(monitor: Monitor) -> tuple[Family, ...]:
    """The numbers of a monitor as plain data."""
    return tuple(
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for sample in metric.samples
                if not sample.name.endswith("_created")  # when a process began is no number of the service
            },
        )
        for metric in monitor.registry.collect()
    )


class SummedNumbers:
    """The numbers of a service.

    Parameters
    ----------
    alpha
        Probability that the alarm of drift of a model ever rises without a change; 0 watches for none.
    """

    def __init__(self, alpha: float) -> None:
        self.own = Monitor()
        self.watches = Watches(alpha, self.own)
        self._latest: dict[str, tuple[float, NumbersReport]] = {}
        self._ended: dict[tuple[str, SampleKey], float] = defaultdict(float)
        self._newest: dict[str, tuple[float, Version | None]] = {}

    def add(self, report: NumbersReport, now: float) -> None:
        """Take in a report that came at ``now``, in seconds."""
        if report.source in self._latest and report.number <= self._latest[report.source][1].number:
            return
        self._latest[report.source] = now, report
        for name, loaded in report.versions.items():
            if name not in self._newest or loaded[0] > self._newest[name][0]:
                self._newest[name] = loaded
                self.watches.begin(name, loaded[1])
        for (name, version), p_values in report.p_values.items():
            if (
                version == self._newest[name][1]
            ):  # that of a model that is being replaced tells nothing of the new one
                self.watches.update(name, p_values)

    def text(self, now: float) -> bytes:
        """All numbers in the format of Prometheus, at ``now``."""
        return generate_latest(_At(self, now))  # type: ignore[arg-type]

    def _collected(self, now: float) -> Iterator[Metric]:
        self._let_go(now)
        own = families_of(self.own)
        for place, family in enumerate(own):
            values = defaultdict(float, family.values)
            for (name, key), value in self._ended.items():
                if name == family.name:
                    values[key] += value
            for came, report in self._latest.values():
                if family.kind != "gauge" or now - came <= LIVE_SECONDS:
                    for key, value in report.families[place].values.items():
                        values[key] += value
            metric = Metric(family.name, family.documentation, family.kind)
            for (sample, labels), value in values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def _let_go(self, now: float) -> None:
        """Of a process that has long been silent keep only its totals."""
        for source, (came, report) in list(self._latest.items()):
            if now - came > KEPT_SECONDS:
                for family in report.families:
                    if family.kind != "gauge":
                        for key, value in family.values.items():
                            self._ended[family.name, key] += value
                del self._latest[source]


@dataclass(frozen=True)
class _At:
    """The sums at a time, for ``generate_latest``."""

    sums: SummedNumbers
    now: float

    def collect(self) -> Iterator[Metric]:
        return self.sums._collected(self.now)
