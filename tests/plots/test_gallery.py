"""Every picture is in the gallery."""

from pathlib import Path

import pytest

import bll_pyro as bll

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "gallery.md"


@pytest.mark.parametrize("name", bll.plots.__all__)
def test_every_picture_is_in_the_gallery(name):
    assert f"bll.plots.{name}(" in GALLERY.read_text(), "give it a cell in docs/gallery.md"
