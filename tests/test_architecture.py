"""The architecture page is of this tree: its tables and drawings name what exists, and so do the other pages."""

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bll_pyro"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("[!_]*/*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SOURCES = sorted((ROOT / "docs" / "architecture").glob("*.dot"))


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """Lines of the tables whose first cell is a path in backticks: ``{path: other cells}``."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {first.strip("`"): rest for first, *rest in cells}
    assert len(found) == len(lines), "a path stands in two lines"
    return found


def listing(folder: Path) -> set[str]:
    """Modules and packages in a folder, as the page writes them, relative to the package."""
    files = {str(p.relative_to(PACKAGE)) for p in folder.glob("*.py") if not p.name.startswith("__")}
    return files | {f"{p.parent.relative_to(PACKAGE)}/" for p in folder.glob("*/__init__.py")}


def test_every_room_and_chapter_has_one_line() -> None:
    assert set(rows(section("What lives where"))) == listing(PACKAGE) | listing(PACKAGE / "inference")


def test_every_file_of_a_chapter_is_named() -> None:
    named = {
        path: set(re.findall(r"\w+", cells[-1]))
        for path, cells in rows(section("What lives where")).items()
        if re.fullmatch(r"inference/\w+/", path)
    }
    found = {
        path: {file.stem for file in (PACKAGE / path).glob("*.py") if not file.name.startswith("__")}
        for path in named
    }
    assert named == found


def test_files_to_imitate_exist() -> None:
    paths = rows(section("Files to imitate"))
    assert len(paths) >= 5
    assert not [path for path in paths if not (PACKAGE / path).is_file()]


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", PAGE)
    assert len(targets) >= 5
    assert not [target for target in targets if not (ROOT / "docs" / target).exists()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_drawing_is_of_its_source(source: Path) -> None:
    drawing = source.with_suffix(".svg").read_text()
    assert f"sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}" in drawing, (
        "the source was changed: python docs/architecture/render.py"
    )
    hosts = set(re.findall(r"https?://[^\s\"']+", drawing))
    assert hosts <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, nothing is loaded
    assert f"architecture/{source.stem}.svg" in PAGE


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_drawing_names_files_that_exist(source: Path) -> None:
    label = re.compile(r'<font point-size="11"[^>]*>(.*?)</font>')
    paths = [path for names in label.findall(source.read_text()) for path in names.split(", ")]
    assert len(paths) > 8
    assert not [path for path in paths if not (PACKAGE / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_prose_exist(page: Path) -> None:
    """A path in backticks is one of the repository, of the package, or of the documentation."""
    text = re.sub(r"This is `[^`]+`", "", page.read_text())  # files that CONTRIBUTING.md adds
    paths = re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|dot|json|txt))`", text)
    assert not [p for p in paths if not any((root / p).exists() for root in (ROOT, PACKAGE, ROOT / "docs"))]
