"""``ServiceSettings``: the limits of a service, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bll_pyro.checks import count, positive, share

KEY_VARIABLE = "BLL_API_KEY"
MIB = 2**20


@dataclass(frozen=True)
class ServiceSettings:
    """Limits and switches of a service; the defaults suit one machine behind a proxy.

    Parameters
    ----------
    batch_rows
        Most rows that a model computes at a time. A request with more is computed in parts, between which others get their turn.
    batch_delay
        Seconds that a batch waits for as many requests as the one before held; a lone request never waits.
    queued_rows
        Most rows that wait for each model; beyond that requests are refused by 503 and ``Retry-After``.
    request_rows, request_bytes, image_pixels
        Most rows of a request, bytes of its body, and pixels of an image before it is decoded. All bodies that are at work in a
        worker together have at most four times the bytes.
    concurrency
        Most requests at a time in a worker; further ones are refused by 503.
    time_limit, body_time_limit
        Seconds for a request (504), and for the arrival of its body (408).
    alpha
        Probability, over the whole life of the service, that the alarm of drift rises without any drift; 0 watches for none.
    key_file
        File of API keys, one a line; with the one of the variable ``BLL_API_KEY`` they are those that are taken. None and no
        variable: everyone is served.
    """

    batch_rows: int = 256
    batch_delay: float = 0.002
    queued_rows: int = 16_384
    request_rows: int = 10_000
    request_bytes: int = 32 * MIB
    image_pixels: int = 40_000_000
    concurrency: int = 256
    time_limit: float = 30.0
    body_time_limit: float = 20.0
    alpha: float = 0.01
    key_file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

    def __post_init__(self) -> None:
        for name in (
            "batch_rows",
            "queued_rows",
            "request_rows",
            "request_bytes",
            "image_pixels",
            "concurrency",
        ):
            count(getattr(self, name), name, "ServiceSettings")
        for name in ("time_limit", "body_time_limit"):
            positive(getattr(self, name), name, "ServiceSettings")
        if not 0 <= self.batch_delay < 10:
            raise ValueError(
                f"ServiceSettings(batch_delay=...): expected seconds from 0 to 10, got {self.batch_delay}; 2 ms are 0.002"
            )
        if self.alpha != 0:
            share(self.alpha, "alpha", "ServiceSettings", "0 watches for no drift")
        if self.queued_rows < self.request_rows:
            raise ValueError(
                f"ServiceSettings(queued_rows=...): expected at least request_rows, {self.request_rows:,}, "
                f"got {self.queued_rows:,}: a request of so many rows would never be taken"
            )

    @property
    def is_locked(self) -> bool:
        """Whether a key is asked for."""
        return self.key_file is not None or KEY_VARIABLE in self.environment
