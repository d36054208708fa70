"""``bll report``: the page of a run, of a fit that was saved by itself, and what is wrong with a command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bll_pyro as bll
from bll_pyro import cli

TOWNS = ("Ulm", "Bonn", "<b>Kiel</b>")
NUM_ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a run of it, and a fit that was saved by itself."""
    path = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    table = pd.DataFrame({"size": random.normal(100, 30, NUM_ROWS), "town": random.choice(TOWNS, NUM_ROWS)})
    table["price"] = 2 * table["size"] + 30 * (table["town"] == "Bonn") + random.normal(0, 15, NUM_ROWS)
    table.to_csv(path / "houses.csv", index=False)
    (path / "houses.yaml").write_text(
        f"data: {{class: Table, path: {path / 'houses.csv'}, target: price}}\ninference: {{class: Exact}}\n"
    )
    assert cli.main(["fit", str(path / "houses.yaml"), "--out", str(path / "run"), "--quiet"]) == 0
    plain = table[["size"]].to_numpy(np.float32), table["price"].to_numpy(np.float32)
    bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), plain, inference=bll.Exact()).save(path / "alone")
    np.savez(path / "rows.npz", features=plain[0], targets=plain[1])
    return path


def test_of_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["report", str(folder / "run"), "-o", str(page), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"] == str(page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert said["metrics"] == numbers["metrics"] and numbers["title"] == "Report of run"
    assert {"nll", "plain_nll", "plain_calibrated_nll", "ood_alarms", "checks_ok"} <= set(numbers["metrics"])
    text = page.read_text()
    assert "&lt;b&gt;Kiel&lt;/b&gt;" in text and "<b>Kiel" not in text  # columns as they are in the file
    assert cli.main(["check", str(page.with_suffix(".json")), "--fail", "coverage_90<0.5"]) == 0
    assert cli.main(["check", str(page.with_suffix(".json")), "--fail", "nll>0"]) == 1


def test_of_other_rows(folder: Path, tmp_path: Path) -> None:
    """A later table, with its targets and without."""
    table = pd.read_csv(folder / "houses.csv").head(40)
    for name, rows in (("with", table), ("without", table.drop(columns="price"))):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        page = tmp_path / f"{name}.html"
        given = ["--rows", str(tmp_path / f"{name}.csv"), "-o", str(page), "--quiet"]
        assert cli.main(["report", str(folder / "run"), *given]) == 0
        metrics = json.loads(page.with_suffix(".json").read_text())["metrics"]
        assert metrics["num_rows"] == 40 and ("nll" in metrics) == (name == "with")


def test_of_a_fit_by_itself(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    arguments = ["report", str(folder / "alone"), "--rows", str(folder / "rows.npz"), "-o", str(page)]
    assert cli.main([*arguments, "--title", "Prices"]) == 0
    said = capsys.readouterr().out
    assert "Predicted means are off by" in said and f"{page}: " in said
    assert "<title>Prices</title>" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing"], 2, "expected the folder of a run or of a saved fit"),
        (["alone"], 2, "expected --rows with a fit that was saved by itself"),
        (["run", "--rows", "run:tset"], 2, "did you mean 'test'?"),
        (["run", "-o", "page.txt"], 2, "expected a name that ends in .html"),
        (["run", "-o", "no/page.html"], 2, "expected a folder that is there"),
        (["run", "--helt-out", "x.csv"], 2, "did you mean '--held-out'?"),
    ],
)
def test_wrong_use(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    assert cli.main(["report", *arguments]) == code
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err
    assert sorted(path.name for path in folder.iterdir()) == before
