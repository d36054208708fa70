"""Conditions on the metrics of a report: ``ece>0.03``."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.files import user_path

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*([A-Za-z]\w*)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
FORMAT = 1  # the newest that is understood

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Condition:
    """A condition under which a check fails: ``metric``, operator, number."""

    metric: str
    sign: str
    limit: float

    @classmethod
    def parsed(cls, text: str) -> Condition:
        """The condition that a text means; UsageError if it is none."""
        match = FORM.fullmatch(text)
        try:
            limit = float(match[3]) if match else float("nan")
        except ValueError:
            limit = float("nan")
        if match is None or limit != limit:
            raise UsageError(
                f'--fail: expected a metric, one of {" ".join(OPERATORS)} and a number, such as "ece>0.03", got {text!r}; '
                "put quotes around it, since < and > mean files to the shell"
            )
        return cls(match[1], match[2], limit)

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.limit:g}"

    def is_met(self, metrics: Metrics) -> bool:
        """Whether the check fails: the condition holds, or the metric is no finite number, of which nothing can be promised."""
        value = self.value(metrics)
        return value is None or OPERATORS[self.sign](value, self.limit)

    def value(self, metrics: Metrics) -> float | None:
        """The metric; UsageError if the report has none of this name."""
        if self.metric not in metrics:
            raise UsageError(
                f"--fail: expected a metric of the report, got {self.metric!r}; {nearest(self.metric, metrics)}"
            )
        return metrics[self.metric]


def report_metrics(path: Path) -> dict[str, float | None]:
    """The metrics in a report's JSON file.

    Raises
    ------
    UsageError
        If there is no such file, it is no report, or one of a newer version.
    """
    file = user_path(path)
    if file.suffix.lower() in (".html", ".htm"):
        raise UsageError(
            f"expected the numbers of a report, {file.with_suffix('.json').name}, got its page {file.name}"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(
            f"expected the report.json of a report, got {file}, which is no file; bll report writes one"
        ) from error
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{file}: expected JSON, got something else: {error}") from error
    metrics = found.get("metrics") if isinstance(found, dict) else None
    if not isinstance(metrics, dict):
        raise UsageError(f"{file}: expected the report.json of a report, got JSON without metrics")
    if not isinstance(found.get("format"), int) or found["format"] > FORMAT:
        raise UsageError(
            f"{file}: expected a report of format {FORMAT} or older, got {found.get('format')!r}; use the bll_pyro that wrote it "
            f"({found.get('bll_pyro', 'unknown')}) or a newer one"
        )
    return metrics
