"""The documentation builds without a warning, its links lead somewhere, and its pages fit a large and a small screen."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from browser import chromium
from filelock import FileLock

import bll_pyro as bll

ROOT = Path(__file__).resolve().parent.parent
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']*""")
LINKED = re.compile(r"""<[^>]*?\b(?:href|src)=["']([^"']+)["']""")
ANCHOR = re.compile(r"""\bid=["']([^"']+)["']""")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of the pages, whose code was executed: built once, whichever process of the tests asks first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "documentation"
    folder.mkdir(exist_ok=True)
    pages, said = folder / "html", folder / "said.txt"
    with FileLock(folder / "lock"):
        if not said.exists():
            program = str(Path(sys.executable).parent / "sphinx-build")
            options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
            done = subprocess.run(
                [program, *options, "docs", str(pages)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            said.write_text(f"{done.returncode}\n{done.stdout}")
    code, text = said.read_text().split("\n", 1)
    assert code == "0", f"sphinx-build ended with exit code {code}\n{text}"
    return pages


def read(html: Path) -> dict[Path, str]:
    """Text of each page by its path."""
    found = {path: path.read_text() for path in sorted(html.rglob("*.html")) if "_static" not in path.parts}
    assert len(found) > 100
    return found


def test_documentation(html: Path) -> None:
    """It builds, its code runs, and its pages load nothing from another host."""
    foreign = {path.name: found for path, text in read(html).items() if (found := LOADED.findall(text))}
    assert not foreign


def dangling(pages: dict[Path, str]) -> set[tuple[str, str]]:
    """Links of the pages to files that are not there, or to places in a page that it has not: (page, link)."""
    anchors = {path: set(map(unescape, ANCHOR.findall(text))) for path, text in pages.items()}
    found = set()
    for page, text in pages.items():
        for link in set(map(unescape, LINKED.findall(text))):
            if re.match(r"[a-z][a-z0-9+.-]*:|//", link):  # another host, an e-mail, data
                continue
            file, _, place = link.partition("#")
            target = (page.parent / unquote(file.split("?")[0])).resolve() if file else page.resolve()
            is_there = target.is_file() and (
                not place or target not in anchors or unquote(place) in anchors[target]
            )
            if not is_there:
                found.add((page.name, link))
    return found


def test_links_inside_lead_to_a_page_and_a_place_in_it(html: Path) -> None:
    assert not dangling({path.resolve(): text for path, text in read(html).items()})


def test_a_dangling_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text('<a href="#here">x</a><p id="here"><a href="a.html#gone">y</a> <img src="b%20c.png">')
    assert dangling({page: page.read_text()}) == {("a.html", "a.html#gone"), ("a.html", "b%20c.png")}
    (tmp_path / "b c.png").touch()
    assert dangling({page: page.read_text()}) == {("a.html", "a.html#gone")}


def test_every_name_of_the_front_door_leads_to_its_entry(html: Path) -> None:
    text = (html / "reference" / "index.html").read_text()
    linked = set(re.findall(r'href="[^"]+#[^"]+"[^>]*><code[^>]*><span class="pre">bll\.(\w+)<', text))
    assert linked == set(bll.__all__)


# ---- in a browser

# What sticks out to the right of the window, or has text that does, unless something around it scrolls sideways.
STICKS_OUT = """all => all.filter(one => {
    const box = one.getBoundingClientRect()
    const spills = one.clientWidth && getComputedStyle(one).overflowX === 'visible' ? box.left + one.scrollWidth : 0
    if (!one.checkVisibility() || Math.max(box.right, spills) <= innerWidth + 1) return false
    for (let at = one; at && at !== document.body; at = at.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX) && at.getBoundingClientRect().right <= innerWidth + 1)
            return false
    return true
}).map(one => one.outerHTML.slice(0, 90))"""
THEME = re.compile(r"Got invalid theme mode: \.|\[PST\]")  # what the theme says of its first visit
COLUMNS = ".bd-sidebar-primary, .bd-sidebar-secondary"
# Side columns that can be seen, with the length of their text; on a small screen they are hidden.
SHOWN = """all => all.filter(one => one.checkVisibility({visibilityProperty: true}))
    .map(one => [one.className, one.innerText.trim().length])"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def brightness(page: Any, style: str) -> float:
    """Mean of red, green and blue of a colour of the body, up to 255."""
    colour = page.evaluate(f"getComputedStyle(document.body).{style}")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", ["index", "benchmarks", "table-to-decision"])
def test_pages_fit_the_window(html: Path, browser: Any, name: str, width: int, scheme: str) -> None:
    """Nothing sticks out, no side column is empty, the colours follow the scheme, and nothing is asked of the network."""
    page, heard = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    try:
        page.on("console", lambda message: None if THEME.match(message.text) else heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(("file:", "data:")) else heard.append(asked.url),
        )
        page.goto((html / f"{name}.html").as_uri())
        assert not heard
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("article *").evaluate_all(STICKS_OUT) == []
        assert page.locator("article table").count()
        assert page.locator("article img").evaluate_all("all => all.every(one => one.naturalWidth > 100)")
        assert [name for name, length in page.locator(COLUMNS).evaluate_all(SHOWN) if length < 10] == []
        ink, paper = brightness(page, "color"), brightness(page, "backgroundColor")
        assert (ink < 100 < 200 < paper) if scheme == "light" else (paper < 50 < 180 < ink)
    finally:
        page.close()


@pytest.mark.browser
def test_the_front_page_shows_code_and_its_picture(html: Path, browser: Any) -> None:
    """Both can be seen without scrolling on a large screen, and the lines are at most fifteen."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    try:
        page.goto((html / "index.html").as_uri())
        code, picture = (
            page.locator("article .cell_input pre").first,
            page.locator("article .cell_output img").first,
        )
        assert 8 <= sum(bool(line.strip()) for line in code.inner_text().splitlines()) <= 15
        for part in (code, picture):
            box = part.bounding_box()
            assert box is not None and box["y"] + box["height"] <= 900 and box["height"] > 100
        page.get_by_role("link", name="A network you have").first.click()
        assert "bll.bayesianize(network" in page.locator("article").inner_text()
    finally:
        page.close()
