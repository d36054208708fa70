"""Reports in headless Chromium: quiet, without requests, readable on every screen, operated by mouse and keyboard."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import chromium
from report_cases import HOSTILE, case, images

import bll_pyro as bll

pytestmark = pytest.mark.browser
SERIOUS = ("serious", "critical")
PAGES = ("classes", "values", "images", "million")


def report_of(name: str, path: Path) -> None:
    """Write the report of everything that there is, of values, of 10,000 images, or of a million rows."""
    if name == "million":
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1_000_000, 2, generator=generator)
        y = (x[:, 0] + torch.randn(len(x), generator=generator) > 0).long()
        fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(2)), (x[:200], y[:200]))
        bll.report(fit, (x, y), path)
        return
    given = images() if name == "images" else case(name)
    more: dict[str, Any] = {}
    if name == "classes":
        names = [HOSTILE, "a" * 200, "two\nlines"]
        more = {"train": given.train, "unknown": 6 * given.test[0], "class_names": names}
    bll.report(given.fit, given.test, path, held_out=given.held_out, **more)


class Pages(dict[str, Path]):
    """Paths of reports by name; each is written when it is asked for first, as a process runs a part of the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / f"{name}.html"
        report_of(name, self[name])
        return self[name]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Reports by name."""
    return Pages(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@dataclass
class Heard:
    """What a page said and asked for."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def opened(browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> tuple[Any, Heard]:
    """A page, and what it says and asks for besides itself."""
    page, heard = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), Heard()
    page.on("console", lambda message: heard.messages.append(message.text))
    page.on("pageerror", lambda error: heard.messages.append(str(error)))
    page.on("request", lambda request: heard.requests.append(request.url))
    page.goto(path.as_uri())
    heard.requests = [url for url in heard.requests if url != path.as_uri() and not url.startswith("data:")]
    return page, heard


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_small_and_open_fast(pages: Pages, browser: Any, name: str) -> None:
    limit = 3e6 if name == "images" else 5e6
    assert pages[name].stat().st_size < limit
    assert pages[name].with_suffix(".json").stat().st_size < limit
    began = time.perf_counter()
    page, heard = opened(browser, pages[name])
    seconds = time.perf_counter() - began
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    page.close()
    assert not heard.messages and not heard.requests
    assert 0 < loaded < 2, f"{seconds:.1f} s with a new tab"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1400, "light"), (1400, "dark"), (390, "dark"), (390, "light")]
)
@pytest.mark.parametrize("name", ["classes", "values", "images"])
@pytest.mark.thinned(2)  # every page at both widths and in both schemes
def test_pages_fit_and_are_accessible(pages: Pages, browser: Any, name: str, width: int, scheme: str) -> None:
    """No part is wider than the window, nothing that axe-core calls serious, and pictures follow the scheme."""
    from axe_playwright_python.sync_playwright import Axe

    page, heard = opened(browser, pages[name], width, scheme)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []
        colour = "getComputedStyle(document.querySelector('svg text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        ink, back = (brightness(page.evaluate(each)) for each in (colour, paper))
        assert (ink < 100 < 200 < back) if scheme == "light" else (back < 50 < 200 < ink)
        assert not heard.messages and not heard.requests
    finally:
        page.close()


def brightness(colour: str) -> float:
    """Mean of ``rgb(r, g, b)``."""
    numbers = [float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(numbers) / 3


def test_tables_sort_by_mouse_and_keyboard(pages: Pages, browser: Any) -> None:
    page, _ = opened(browser, pages["classes"])
    table = page.locator("#rows table").first
    numbers = "rows => rows.map(row => Number(row.cells[0].dataset.key))"

    def rows() -> list[float]:
        found: list[float] = table.locator("tbody tr").evaluate_all(numbers)
        return found

    before = rows()
    heading = table.locator("thead th").first
    button = heading.locator("button")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert rows() == sorted(before, reverse=True) != before
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending" and rows() == sorted(before)
    page.keyboard.press("Tab")  # to the next heading
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"
    page.close()


def test_headings_landmarks_and_keyboard(pages: Pages, browser: Any) -> None:
    page, _ = opened(browser, pages["classes"])
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for link in page.locator("nav a").evaluate_all("all => all.map(one => one.getAttribute('href'))"):
        assert page.locator(link).count() == 1
    seen = page.locator("[role=img]").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert len(seen) >= 6 and all(len(text) > 40 for text in seen)
    page.close()


def test_names_are_text_and_no_code(pages: Pages, browser: Any) -> None:
    page, heard = opened(browser, pages["classes"])
    assert HOSTILE in page.locator("#quality").inner_text()
    assert page.locator("main script, main b:not(.badge)").count() == 0
    assert not heard.messages
    page.close()


def test_printed_pages_are_readable(pages: Pages, browser: Any, tmp_path: Path) -> None:
    """On paper: light whatever the screen, no navigation, nothing cut at the right edge, several pages of A4."""
    page, _ = opened(browser, pages["classes"], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 less its margins, in CSS pixels
    assert brightness(page.evaluate("getComputedStyle(document.body).color")) < 100
    assert not page.locator("nav").is_visible()
    wide = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    assert page.locator("table, figure, dl, p").evaluate_all(wide) == []
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (
        4
        <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") + printed.count(b"/Type /Page ")
        <= 30
    )
    page.close()
