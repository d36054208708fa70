"""Figures as SVG inside a page: text stays text, and colours follow the page's light or dark scheme."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from bll_pyro.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RASTER_DPI = 160  # of parts with many points, which are drawn as an image inside the SVG

# colours of matplotlib, and the name of the page's colour that takes their place (templates/style.css)
COLOURS = {
    "#000000": "ink",
    style.BLACK: "ink",
    style.GREY: "quiet",
    "#ffffff": "paper",
    style.BLUE: "blue",
    style.ORANGE: "orange",
    style.GREEN: "green",
    style.SKY: "sky",
    style.AMBER: "amber",
    style.PINK: "pink",
}
_COLOUR = re.compile("|".join(re.escape(colour) for colour in COLOURS), re.IGNORECASE)
_NAMES = {colour.lower(): f"var(--{name})" for colour, name in COLOURS.items()}
_REFERENCE = re.compile(r"(#|url\(#)([^\s)]+)(\)?)$")
_DROPPED = ("metadata", "style")  # the style sheet of a figure would be one of the whole page


def inline_svg(draw: Callable[[], Figure], name: str) -> str:
    """The figure that ``draw`` makes, as an ``<svg>`` element; its ids begin with ``name``, so that no two of a page meet.

    The caller's settings of matplotlib are left alone.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = draw()
        buffer = io.StringIO()
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # those of ArviZ are registered there
        figure.savefig(buffer, format="svg", dpi=RASTER_DPI, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _without_namespaces(root)
    elements = list(_kept(root))
    _rename(elements, name)
    for element in elements:
        if "style" in element.attrib:
            element.set("style", _restyled(element.attrib["style"]))
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None
    width, box = figure.get_size_inches()[0] * 72, root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": box, "style": f"--width: {width:g}", "aria-hidden": "true", "focusable": "false"}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _without_namespaces(root: ElementTree.Element) -> None:
    """Names as HTML wants them; SVG 2 has ``href`` in place of ``xlink:href``."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            element.set(key.rpartition("}")[2], element.attrib.pop(key))


def _kept(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """All elements, after those that a page does not need are taken out."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in _DROPPED:
                parent.remove(child)
    return root.iter()


def _rename(elements: list[ElementTree.Element], name: str) -> None:
    """Keep ids that something refers to, under names of this figure."""
    references = [_REFERENCE.match(value) for element in elements for value in element.attrib.values()]
    used = {match[2] for match in references if match}
    for element in elements:
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib["id"]
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif match := _REFERENCE.match(value):
                element.set(key, f"{match[1]}{name}-{match[2]}{match[3]}")


def _restyled(declarations: str) -> str:
    """Colours of the page; letters of the page in the figure's size."""
    kept = [part.strip() for part in declarations.split(";") if "font-family" not in part]
    return _COLOUR.sub(lambda match: _NAMES[match[0].lower()], "; ".join(kept))
