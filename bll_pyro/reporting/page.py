"""Sections as one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bll_pyro.reporting.blocks import Chart, Finding, Section
from bll_pyro.reporting.svg import inline_svg
from bll_pyro.reporting.terms import TERMS

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPT = "sorting.js"


def rendered(
    sections: Sequence[Section],
    findings: Sequence[tuple[Finding, Section]],
    title: str,
    subtitle: str,
    made: datetime.datetime,
    version: str,
) -> str:
    """The page. Everything that comes from data is escaped, and no script but the page's own would run."""
    from markupsafe import Markup

    texts = _templates()
    digest = hashlib.sha256(texts[SCRIPT].encode()).digest()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            sections=sections,
            findings=findings,
            tiles=[tile for section in sections for tile in section.tiles],
            title=title,
            subtitle=subtitle,
            made=made,
            version=version,
            terms=TERMS,
            script=Markup(texts[SCRIPT]),
            script_hash=base64.b64encode(digest).decode("ascii"),
        )
    )


@cache
def _templates() -> dict[str, str]:
    folder = files("bll_pyro.reporting") / "templates"
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader(_templates()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def svg(picture: Chart, name: str) -> Markup:
        return Markup(inline_svg(picture.draw, name))  # its texts are escaped where it is written

    filters: dict[str, Any] = {"svg": svg}
    environment.filters.update(filters)
    return environment
