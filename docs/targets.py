"""The directive ``{missed-targets}``: what the committed benchmarks set out to reach and did not, from ``benchmarks/results``."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def read() -> dict[str, list[dict[str, Any]]]:
    """Targets by the title of their benchmark, in the order of the files."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    return {run["title"]: run["targets"] for run in runs if run.get("targets")}


def table(targets: dict[str, list[dict[str, Any]]]) -> str:
    """How many there are, and those that are missed, in Markdown."""
    rows = [
        f"| {title} | {one['what']} | {one['found']:.4g} | {one['sense']} {one['limit']:.4g} |"
        for title, ones in targets.items()
        for one in ones
        if not one["met"]
    ]
    counted = f"{len(rows)} of {sum(map(len, targets.values()))} targets of {len(targets)} benchmarks."
    return "\n".join(
        [counted, "", "| benchmark | target | found | limit |", "| --- | --- | --- | --- |", *rows]
    )


class MissedTargets(SphinxDirective):
    """The table of missed targets; the page is written anew when a result changes."""

    def run(self) -> list[nodes.Node]:
        for file in RESULTS.glob("*.json"):
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes(table(read()))
