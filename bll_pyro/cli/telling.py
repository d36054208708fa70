"""What a run comes to, in words for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bll_pyro.cli import run_folder

CONTENTS = (
    run_folder.EXPERIMENT,
    run_folder.METRICS,
    f"{run_folder.MODEL}/",
    run_folder.TREE,
    run_folder.LOG,
)


def told(metrics: dict[str, Any], path: Path) -> str:
    """Rows, quality beside the plain head, and where files lie."""
    from bll_pyro.evaluation import Evaluation

    rows = ", ".join(f"{number:,} {name}" for name, number in metrics["rows"].items() if number)
    lines = [f"rows: {rows}"]
    if metrics["quality"] is not None:
        lines += ["", str(Evaluation(metrics["quality"])), ""]
    there = [name for name in CONTENTS if (path.expanduser() / name).exists()]
    lines.append(f"{path}/: {', '.join(there)}")
    return "\n".join(lines)
