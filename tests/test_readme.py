"""What README.md says is true: its links lead somewhere, its pictures are small. Its code runs in test_wheel.py."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in target]
    assert len(targets) > 8
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_pictures_are_small() -> None:
    pictures = [ROOT / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)]
    assert pictures
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 100_000


def test_commands_exist() -> None:
    """Every ``make`` target and every ``bll`` command that is named is there."""
    from bll_pyro.cli.commands import COMMANDS

    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"and", "up"}
    assert {"demo", "test", "docs"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert set(re.findall(r"`bll ([a-z]+)", README)) <= set(COMMANDS)


def test_the_chinese_page_is_in_step() -> None:
    """Same code, same numbers in tables, and all links of README.md, in the same order of sections."""
    chinese = (ROOT / "README.zh-CN.md").read_text()

    def parts(text: str, pattern: str) -> list[str]:
        return re.findall(pattern, text, re.MULTILINE | re.DOTALL)

    for pattern in (r"^```.*?^```$", r"(?<=\| )[\d.]+ \([\d.–]+\)|(?<=\| )–"):
        assert parts(README, pattern) == parts(chinese, pattern) != []
    links = r"\]\(([^)\s]+)\)"
    assert set(parts(README, links)) - {"README.zh-CN.md"} == set(parts(chinese, links)) - {"README.md"}
    assert len(parts(README, r"^## ")) == len(parts(chinese, r"^## "))


def test_the_chinese_quick_start_is_in_step() -> None:
    """The cells that readers see, the links and the number of sections are those of the English page."""
    english, chinese = (ROOT / "docs" / name for name in ("quickstart.md", "zh/quickstart.md"))

    def cells(path: Path, opening: str) -> list[str]:
        found = re.findall(rf"^{re.escape(opening)}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        return [cell for cell in found if not cell.startswith(":tags: [remove-cell]")]

    def links(path: Path) -> set[Path]:
        targets = {link for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if "://" not in link}
        return {(path.parent / link).resolve() for link in targets} - {english, chinese}

    assert cells(english, "```{code-cell} python") == cells(chinese, "```python") != []
    assert links(english) == links(chinese) and all(link.is_file() for link in links(english))
    headings = [len(re.findall(r"^## ", path.read_text(), re.MULTILINE)) for path in (english, chinese)]
    assert headings[0] == headings[1] > 2
