"""A headless Chromium for tests that look at rendered pages.

Continuous integration installs it (``tools/install_chromium``) and sets ``BLL_REQUIRE_BROWSER``, by which a missing browser
is a failure. On other machines these tests skip, and say how to install it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "install it by `tools/install_chromium` (Debian, Ubuntu), or set CHROMIUM to the program of a Chrome or Chromium"


def executable() -> str:
    """Path of Chromium: the variable ``CHROMIUM``, or the first that is found."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        why = f"no Chromium: {REMEDY}"
        if os.environ.get("BLL_REQUIRE_BROWSER"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    path = executable()
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # as root, in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()
