"""Logs: one JSON object a line, with the id of the request, and nothing of its inputs."""

from __future__ import annotations

import json
import logging
import os
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = "bll_pyro.serve"


def tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with plain fields."""
    log = logging.getLogger(LOGGER)
    if log.isEnabledFor(level):
        log.log(level, event, extra={"fields": fields})


def where(error: BaseException) -> dict[str, Any]:
    """Type and place of an error. Its message is left out: it may quote an input."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "error": type(error).__name__,
        "trace": [f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "worker": record.process}
        if record.name != LOGGER:
            line["logger"] = record.name
        line["event"] = record.getMessage()
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= where(record.exc_info[1])
        return json.dumps(line, default=str)


def configuration(level: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``: this package and uvicorn as lines of JSON on standard error."""
    logger = {"handlers": ["lines"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": f"{__name__}.JsonLines"}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}
        },
        "loggers": {
            **dict.fromkeys((LOGGER, "uvicorn", "py.warnings"), logger),
            "python_multipart": {"level": "CRITICAL"},  # it quotes forms that are damaged
        },
    }
