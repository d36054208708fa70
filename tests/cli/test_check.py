"""``bll check``: conditions on the numbers of a report."""

import json
from pathlib import Path

import pytest

from bll_pyro import cli

METRICS = {"ece": 0.031, "accuracy": 0.9, "nll": None, "checks_wrong": 0.0}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"format": 1, "metrics": METRICS}))
    return path


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (["ece>0.03"], 1),
        (["ece > 0.04"], 0),
        (["ece<=0.031"], 1),
        (["ece<0.031"], 0),
        (["accuracy>=0.9"], 1),
        (["accuracy==0.9", "ece>1"], 1),
        (["accuracy!=0.9"], 0),
        (["checks_wrong>0", "ece>0.1", "accuracy<.5", "accuracy>1e3"], 0),
        (["nll>1e9"], 1),  # no finite number
    ],
)
def test_exit_codes(report: Path, capsys: pytest.CaptureFixture, conditions: list[str], code: int) -> None:
    options = [part for one in conditions for part in ("--fail", one)]
    assert cli.main(["check", str(report), *options]) == code
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 + len(conditions)
    assert ("failed" in said.out) == bool(code) == ("to fail are met" in said.err)
    assert cli.main(["check", str(report), *options, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["failed"] == bool(code)


def test_without_conditions_the_metrics_are_listed(report: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["check", str(report)]) == 0
    assert capsys.readouterr().out.split() == [
        "ece", "0.031", "accuracy", "0.9", "nll", "no", "number", "checks_wrong", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("acuracy<0.9", "expected a metric of the report, got 'acuracy'; did you mean 'accuracy'?"),
        ("ece", "expected a metric, one of"),
        ("ece>", "expected a metric, one of"),
        ("ece>high", "expected a metric, one of"),
        ("ece>nan", "expected a metric, one of"),
        ("ece=>0.1", "expected a metric, one of"),
    ],
)
def test_wrong_conditions(report: Path, capsys: pytest.CaptureFixture, condition: str, message: str) -> None:
    assert cli.main(["check", str(report), "--fail", condition]) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.json", None, "which is no file; bll report writes one"),
        ("report.html", "<html>", "expected the numbers of a report, report.json, got its page report.html"),
        ("a.json", "{", "expected JSON, got something else"),
        ("a.json", "[]", "got JSON without metrics"),
        (
            "a.json",
            '{"format": 99, "bll_pyro": "9.0", "metrics": {}}',
            "expected a report of format 1 or older, got 99",
        ),
    ],
)
def test_wrong_files(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.main(["check", str(tmp_path / name), "--fail", "ece>1"]) == 2
    assert message in capsys.readouterr().err
