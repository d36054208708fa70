"""The page at ``/``: one file that asks nothing but this service, and says so by its content security policy."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "page_parts"


def _part(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@cache
def page() -> str:
    """The page."""
    html = _part("page.html")
    return html.replace("/* style */", _part("style.css")).replace("/* script */", _part("page.js"))


POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src {_source(_part('style.css'))}; script-src {_source(_part('page.js'))}"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
