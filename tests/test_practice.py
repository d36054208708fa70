"""The practice guide says what was measured: each line with its verdict, its table and its picture."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "practice.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
FOUND = json.loads((RESULTS / "practice.json").read_text())


def test_every_line_of_advice_has_the_measured_verdict() -> None:
    said = re.findall(r"\*\*(Holds|Wrong): (.+?)\.\*\*", PAGE)
    measured = [(row["verdict"].capitalize(), row["method"]) for row in FOUND["tables"][0]["rows"]]
    assert [(verdict, advice.lower()) for verdict, advice in said] == [
        (verdict, advice.lower()) for verdict, advice in measured
    ]
    assert [target["met"] for target in FOUND["targets"]] == [verdict == "Holds" for verdict, _ in measured]


def test_every_table_and_picture_stands_on_the_page() -> None:
    """Each include finds its table, and none was left out."""
    written = (RESULTS / "practice.md").read_text()
    shown = re.findall(r':start-after: "(### .+)"', PAGE)
    assert shown == [f"### {table['title']}" for table in FOUND["tables"]]
    assert all(written.count(f"{title}\n") == 1 for title in shown)
    pictures = re.findall(r"\.\./benchmarks/results/(practice_\w+\.png)", PAGE)
    assert sorted(pictures) == sorted(path.name for path in RESULTS.glob("practice_*.png"))
    assert all(f"({name})" in written for name in pictures)


def test_it_is_no_small_run() -> None:
    assert not FOUND["options"]["small"] and FOUND["options"]["num_runs"] >= 3
