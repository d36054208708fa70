"""``Monitor``: what ``GET /metrics`` tells, in the format of Prometheus, summed over the workers.

With several workers each writes its numbers into files of a folder, named by ``PROMETHEUS_MULTIPROC_DIR`` before this file is
imported (prometheus-client's multiprocess mode); whichever worker is asked reads all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Monitor:
    """The numbers of one application."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "bll_requests", "Requests that were answered.", ("path", "status"), registry=own
        )
        self.seconds = Histogram(
            "bll_request_seconds", "Seconds until the answer.", ("path",), buckets=SECONDS, registry=own
        )
        self.running = Gauge(
            "bll_requests_running", "Requests at work now.", registry=own, multiprocess_mode="livesum"
        )
        self.rows = Counter("bll_rows", "Rows that were predicted.", model, registry=own)
        self.batch_rows = Histogram("bll_batch_rows", "Rows of a batch.", model, buckets=ROWS, registry=own)
        self.queued_rows = Gauge(
            "bll_queued_rows",
            "Rows that wait or are computed.",
            model,
            registry=own,
            multiprocess_mode="livesum",
        )
        self.alarms = Counter(
            "bll_ood_alarms", "Rows that the detector took for unknown.", model, registry=own
        )
        self.epistemic = Counter(
            "bll_epistemic", "Sum of the epistemic uncertainty of the rows.", model, registry=own
        )
        self.reloads = Counter("bll_reloads", "Reloads of a model.", ("model", "outcome"), registry=own)
        self.drift = Gauge(
            "bll_drift_log_value",
            "Logarithm of the evidence of drift: the largest of the workers.",
            model,
            registry=own,
            multiprocess_mode="livemax",
        )
        self.drifted = Gauge(
            "bll_drift_alarm",
            "1 once a worker has seen drift.",
            model,
            registry=own,
            multiprocess_mode="livemax",
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def predicted(self, name: str, outputs: Mapping[str, np.ndarray]) -> None:
        """Count the rows of one request."""
        self.rows.labels(name).inc(len(outputs["total"]))
        self.epistemic.labels(name).inc(max(float(outputs["epistemic"].sum()), 0.0))
        if "is_ood" in outputs:
            self.alarms.labels(name).inc(int(outputs["is_ood"].sum()))

    def watched(self, name: str, log_value: float, alarm: bool) -> None:
        """Set what is known of drift."""
        self.drift.labels(name).set(log_value)
        self.drifted.labels(name).set(int(alarm))

    def text(self) -> bytes:
        """All numbers, of all workers."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        joined = CollectorRegistry()
        MultiProcessCollector(joined)
        return generate_latest(joined)
