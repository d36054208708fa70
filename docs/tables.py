"""Directives that write a table from what is committed: ``{missed-targets}`` and ``{front-door}``."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import bll_pyro

APART = Path(__file__).resolve().parent / "reference" / "rows-and-backbones.md"
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def targets() -> dict[str, list[dict[str, Any]]]:
    """Targets of the committed benchmarks by the title of the run, in the order of the files."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    return {run["title"]: run["targets"] for run in runs if run.get("targets")}


def missed(targets: dict[str, list[dict[str, Any]]]) -> str:
    """How many targets there are, and those that are missed, in Markdown."""
    rows = [
        f"| {title} | {one['what']} | {one['found']:.4g} | {one['sense']} {one['limit']:.4g} |"
        for title, ones in targets.items()
        for one in ones
        if not one["met"]
    ]
    counted = (
        f"{len(rows)} of {sum(map(len, targets.values()))} targets of {len(targets)} benchmarks are missed:"
    )
    return "\n".join(
        [counted, "", "| benchmark | target | found | limit |", "| --- | --- | --- | --- |", *rows]
    )


def front_door() -> str:
    """What ``import bll_pyro as bll`` gives, with the first sentence of each docstring, in Markdown."""
    apart = set(re.findall(r"bll_pyro\.(\w+)$", APART.read_text(), re.MULTILINE))
    places = {
        name: f"{room.split('.')[0]}.{name}" for name, room in bll_pyro._ROOMS.items() if name not in apart
    }
    rows = ["| name | |", "| --- | --- |"]
    for name in (*bll_pyro._ROOMS, *bll_pyro._MODULES):
        value = getattr(bll_pyro, name)
        role = "mod" if inspect.ismodule(value) else "obj"
        place = value.__name__.removeprefix("bll_pyro.") if role == "mod" else places.get(name, name)
        rows.append(f"| {{py:{role}}}`bll.{name} <bll_pyro.{place}>` | {first_sentence(value)} |")
    return "\n".join(rows)


def first_sentence(value: Any) -> str:
    """Of a docstring, without roles of reStructuredText, as a cell of a table in Markdown."""
    line = inspect.getdoc(value).splitlines()[0].split(". ")[0].removesuffix(".").replace("``", "`")
    return re.sub(r":\w+:(`[^`]+`)", r"\1", line).replace("|", r"\|")


class MissedTargets(SphinxDirective):
    """The table of missed targets; the page is written anew when a result changes."""

    def run(self) -> list[nodes.Node]:
        for file in RESULTS.glob("*.json"):
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes(missed(targets()))


class FrontDoor(SphinxDirective):
    """The table of the names of the front door."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(APART))
        return self.parse_text_to_nodes(front_door())
