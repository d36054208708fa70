"""``bll check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll_pyro.cli.console import Console


def check_command(report: Path, console: Console, fail: Sequence[str] = ()) -> None:
    """Hold a report to conditions, for continuous integration.

    The exit code is 1 if any condition to fail is met, 0 if none is, and 2 if a condition cannot be read or names no metric. A
    metric that is no finite number meets every condition. Without conditions the metrics are listed.

    Parameters
    ----------
    report
        The JSON file that bll report writes beside the page.
    fail
        When to fail: a metric, one of < <= > >= == != and a number, in quotes. May be given several times.

    Examples
    --------
    bll check report.json
    bll check report.json --fail "ece>0.03" --fail "accuracy<0.9"
    bll check report.json --fail "checks_wrong>0" --fail "nll_gain<0"
    """
    from bll_pyro.cli.conditions import Condition, report_metrics

    metrics = report_metrics(report)
    if not fail:
        width = max(map(len, metrics), default=0)
        lines = [f"{name:<{width}}  {_shown(value):>12}" for name, value in metrics.items()]
        console.result("\n".join(lines), {"metrics": metrics})
        return
    conditions = [Condition.parsed(text) for text in fail]
    rows = [(str(one), one.value(metrics), one.is_met(metrics)) for one in conditions]
    width = max(len("fail if"), *(len(text) for text, _, _ in rows))
    lines = [f"{'fail if':<{width}}  {'value':>12}  verdict"]
    lines += [
        f"{text:<{width}}  {_shown(value):>12}  {'failed' if met else 'ok'}" for text, value, met in rows
    ]
    data = [{"condition": text, "value": value, "failed": met} for text, value, met in rows]
    console.result("\n".join(lines), {"conditions": data, "failed": any(met for _, _, met in rows)})
    if failed := [text for text, _, met in rows if met]:
        raise ValueError(f"{len(failed)} of {len(rows)} conditions to fail are met: {', '.join(failed)}")


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"
