"""The page in headless Chromium: an image dropped, a row pasted, a wrong file explained, by keyboard, in light and dark."""

import base64
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from browser import chromium
from service_cases import fit, rows, softmax_of

from bll_pyro.serve import ServedModel, ServiceSettings, application, of_fit

pytestmark = pytest.mark.browser
KEY = "a-key-of-the-tests"
SERIOUS = ("serious", "critical")


def looking() -> ServedModel:
    """Images: how red, green and blue they are."""

    def prepare(image: Any) -> np.ndarray:
        return np.asarray(image.resize((4, 4)), np.float32).transpose(2, 0, 1) / 255

    def predict(given: np.ndarray) -> dict[str, np.ndarray]:
        found = softmax_of(np.concatenate([5 * given.mean((2, 3)), np.zeros((len(given), 1), np.float32)], 1))
        return found

    return ServedModel(
        predict,
        (3, 4, 4),
        ["red", "green", "blue"],
        {"alpha": 0.1},
        prepare=prepare,
        has_detector=True,
        threshold=2.2,
    )


@dataclass
class Served:
    """A running service, and the requests of the page."""

    url: str
    browser: Any
    messages: list[str] = field(default_factory=list)

    def opened(self, width: int = 1400, scheme: str = "light", path: str = "/") -> Any:
        page = self.browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on(
            "request",
            lambda request: self.messages.append(request.url) if self.foreign(request.url) else None,
        )
        page.set_default_timeout(10_000)
        page.goto(self.url + path)
        page.locator("#about", has_text="·").wait_for()
        return page

    def foreign(self, url: str) -> bool:
        return not url.startswith((self.url, "data:", "blob:" + self.url))


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    import uvicorn

    loaders = {"digits": lambda: of_fit(fit()), "colours": looking}
    app = application(loaders, ServiceSettings(environment={}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with chromium() as browser:
            yield Served(f"http://127.0.0.1:{port}", browser)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def quiet(service: Served) -> Iterator[None]:
    """The page asks nobody else, and says nothing in the console but for answers that are problems."""
    service.messages.clear()
    yield
    for page in service.browser.contexts:
        page.close()
    assert [text for text in service.messages if "status of 4" not in text] == []


def picture(colour: tuple[int, int, int]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, "PNG")
    return stream.getvalue()


def drop(page: Any, *contents: bytes) -> None:
    """Drop files onto the page, as a hand would."""
    page.evaluate(
        """parts => {
            const data = new DataTransfer();
            for (const part of parts) data.items.add(new File([Uint8Array.from(atob(part), c => c.charCodeAt(0))], "x.png"));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            for (const kind of ["dragover", "drop"]) document.getElementById("drop").dispatchEvent(new DragEvent(kind, options));
        }""",
        [base64.b64encode(content).decode() for content in contents],
    )


def test_an_image_is_dropped(service: Served) -> None:
    page = service.opened()
    page.locator("#model").select_option("colours")
    page.locator("#drop").wait_for()
    drop(page, picture((255, 0, 0)), picture((0, 0, 255)))
    page.locator("#result").wait_for()
    assert "red" in page.locator("#label").inner_text()
    assert page.locator("#which").inner_text() == "Row 1 of 2"
    page.get_by_role("button", name="Next row").click()
    assert "blue" in page.locator("#label").inner_text()
    assert page.locator("#preview").evaluate("image => image.naturalWidth") == 40
    drop(page, b"no image at all")
    page.get_by_role("alert").wait_for()
    assert "cannot be read as one" in page.get_by_role("alert").inner_text()
    assert not page.locator("#result").is_visible()


def test_a_row_is_pasted_by_keyboard_alone(service: Served) -> None:
    """What stands there is what the fit says."""
    page = service.opened()
    many = rows(300)
    is_ood = fit().predict(many).ood.is_ood.numpy()
    given = many[[int((~is_ood).argmax()), int(is_ood.argmax())]]
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "row":
            break
    page.keyboard.insert_text("\n".join(", ".join(map(str, row)) for row in given.tolist()))
    page.keyboard.press("Control+Enter")
    page.locator("#result").wait_for()
    expected = fit().predict(given)
    assert page.locator("#label").inner_text() == f"{expected.label[0]}, {100 * expected.confidence[0]:.1f} %"
    assert page.locator("#badge").inner_text() == "Like the known rows"
    bars = page.locator("#bars li")
    assert bars.count() == 3 and page.locator("#bars .bar b").count() == 3
    draws = fit().draw(given, 200).numpy()[:, 0, int(expected.label[0])]
    low, high = np.quantile(draws, [0.05, 0.95])
    drawn = [part.evaluate("one => [one.getBoundingClientRect().left, one.getBoundingClientRect().width]")
             for part in (page.locator("#bars .bar").first, page.locator("#bars .bar b").first)]  # fmt: skip
    assert abs(drawn[1][0] - drawn[0][0] - low * drawn[0][1]) < 2
    assert abs(drawn[1][1] - max((high - low) * drawn[0][1], 2)) < 2
    assert f"{100 * low:.0f}–{100 * high:.0f}" in bars.first.inner_text()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "after":
            break
    page.keyboard.press("Enter")
    assert page.locator("#badge").inner_text() == "Unlike the known rows"
    verdict = expected.ood
    away = float(verdict.score[1]) - fit().detector.threshold
    assert "above the threshold" in page.locator("#distance").inner_text() and away > 0
    share = float(expected.epistemic[1] / expected.total[1])
    assert f"{100 * share:.1f} %" in page.locator("#parts .epistemic").inner_text()


def test_wrong_rows_are_explained(service: Served) -> None:
    page = service.opened()
    for text, told in (
        ("", "Paste a row"),
        ("1, 2", "expected 4 values, got 2"),
        ("1, 2, 3, x", "expected numbers"),
        ("1, 2, 3, 1e39", "finite"),
    ):
        page.locator("#row").fill(text)
        page.get_by_role("button", name="Predict").click()
        page.get_by_role("alert").wait_for()
        assert told in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_fits_and_is_accessible(service: Served, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = service.opened(width, scheme)
    page.locator("#row").fill("0.3 -1 2 0.1\n9 9 9 9")
    page.get_by_role("button", name="Predict").click()
    page.locator("#result").wait_for()
    page.get_by_role("button", name="Next row").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []
    page.locator("#model").select_option("colours")
    page.locator("#drop").wait_for()
    drop(page, b"x")
    page.get_by_role("alert").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []


def test_a_key_is_asked_for_when_it_is_needed(service: Served) -> None:
    """A second service, behind a key: the same page asks for it."""
    import uvicorn

    app = application({"colours": looking}, ServiceSettings(environment={"BLL_API_KEY": KEY}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        page = service.browser.new_page()
        page.goto(url)
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        assert "Unauthorized" in page.get_by_role("alert").inner_text()
        page.locator("#key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        page.locator("#drop").wait_for()
        page.locator("#file").set_input_files(
            {"name": "../../x.png", "mimeType": "image/png", "buffer": picture((0, 255, 0))}
        )
        page.locator("#result").wait_for()
        assert "green" in page.locator("#label").inner_text()
        page.close()
    finally:
        server.should_exit = True
        thread.join()
