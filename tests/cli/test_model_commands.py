"""``bll evaluate``, ``bll ood`` and ``bll diagnose``: a saved model on data of the run, and on others."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_cases import arrays, table_frame, write_data

import bll_pyro as bll
from bll_pyro.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the run of a table, and with a fit of arrays that was saved by itself."""
    folder = tmp_path_factory.mktemp("commands")
    write_data(folder, "csv")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "e.yaml", "-o", "run", "--no-tree", "--quiet"]) == 0
        x, y = arrays()
        for name, rows in {"train": slice(0, 120), "held": slice(120, 180), "test": slice(180, 240)}.items():
            np.savez(f"{name}.npz", x=x[rows], y=y[rows])
        layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=2))
        bll.fit(layer, (x[:120], y[:120]), inference=bll.Laplace()).save("alone")
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def parts() -> dict[str, list[str]]:
    """Names of the rows of the parts, from the plain file of the run."""
    stored = pd.read_csv("run/splits.csv")
    return {str(part): rows.tolist() for part, rows in stored.groupby("part")["row_id"]}


def test_the_parts_of_a_run_are_stored_by_name() -> None:
    named, frame = parts(), table_frame()
    assert {part: len(rows) for part, rows in named.items()} == {"calibration": 60, "test": 48, "train": 132}
    assert sorted(name for rows in named.values() for name in rows) == sorted(frame["customer"])
    share = (frame["buys"] == "yes").mean()
    for rows in named.values():
        assert abs((frame[frame["customer"].isin(rows)]["buys"] == "yes").mean() - share) < 0.02


def test_test_rows_are_scored_as_the_run_scored_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "evaluate", "run", "run:test")
    metrics = json.loads(Path("run/metrics.json").read_text())
    stored = metrics["quality"]
    assert found == {
        "rows": 48,
        "scores": stored,
        **{key: metrics[key] for key in ("standard_errors", "gains")},
    }
    accuracy, errors = stored["Bayesian"]["accuracy"], metrics["standard_errors"]["Bayesian"]
    assert errors["accuracy"] == pytest.approx((accuracy * (1 - accuracy) / 47) ** 0.5)
    frame = table_frame()
    frame[frame["customer"].isin(parts()["test"])][::-1].to_csv("rows.csv", index=False)
    again = json_of(capsys, "evaluate", "run", "rows.csv")
    assert again["rows"] == 48
    for head, scores in stored.items():
        assert again["scores"][head] == pytest.approx(scores, abs=1e-5)  # type: ignore[index]


def test_a_table_of_one_class_is_scored_by_the_names_of_the_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    frame = table_frame()
    frame[frame["buys"] == "yes"].to_csv("yes.csv", index=False)
    found = json_of(capsys, "evaluate", "run", "yes.csv")
    labels = pd.read_csv("yes.csv").assign(buys="yes")
    assert main(["predict", "run", "yes.csv", "-o", "yes_out.csv", "--overwrite"]) == 0
    expected = (pd.read_csv("yes_out.csv")["label"] == labels["buys"]).mean()
    assert found["scores"]["Bayesian"]["accuracy"] == pytest.approx(expected)  # type: ignore[index]


def test_verdicts_are_those_of_a_detector_of_the_calibration_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the run raise few alarms, rows from elsewhere many; the file has all verdicts."""
    strange = table_frame().head(50).assign(age=lambda frame: frame["age"] + 500)
    strange.to_csv("strange.csv", index=False)
    known = json_of(capsys, "ood", "run", "t.csv", "--alpha", "0.1")
    far = json_of(capsys, "ood", "run", "strange.csv", "--alpha", "0.1", "-o", "far.parquet", "--overwrite")
    assert known["rows"] == 240 and known["rate"] < 0.25 and far["rate"] > 0.9  # type: ignore[operator]
    table = pd.read_parquet("far.parquet")
    assert list(table) == ["row_id", "is_ood", "p_value", "score"] and table["is_ood"].sum() == far["alarms"]
    top = table.nlargest(10, "score")["row_id"].tolist()
    assert [one["row_id"] for one in far["strangest"]] == top  # type: ignore[union-attr]


def test_diagnosis_is_that_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    of_part = json_of(capsys, "diagnose", "run", "run:train", "--num-draws", "200")
    whole = json_of(capsys, "diagnose", "run", "t.csv", "--num-draws", "200")
    assert of_part == whole
    x, y = arrays()
    found = json_of(capsys, "diagnose", "alone", "train.npz", "--num-draws", "200")
    expected = bll.diagnose(bll.load("alone"), x[:120], y[:120], num_draws=200)
    assert found["verdict"] == str(expected.verdict)
    named = {check["check"]: check["verdict"] for check in found["checks"]}  # type: ignore[union-attr]
    assert named == {check.name: str(check.verdict) for check in expected}


def test_a_fit_that_was_saved_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    others = ("--train", "train.npz", "--held-out", "held.npz")
    found = json_of(capsys, "evaluate", "alone", "test.npz", *others)
    x, y = arrays()
    expected = bll.evaluate(
        bll.load("alone"), x[180:], y[180:], held_out=(x[120:180], y[120:180]), train=(x[:120], y[:120])
    )
    assert found["scores"] == expected.scores
    far = json_of(capsys, "ood", "alone", "test.npz", "--known", "held.npz", "--train", "train.npz")
    fit = bll.load("alone")
    detector = bll.ood.Detector().calibrate(fit, x[120:180], train=(x[:120], y[:120]))
    assert far["alarms"] == int(detector.detect(x[180:]).is_ood.sum())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "alone", "test.npz"], "expected --train and --held-out"),
        (["evaluate", "run", "run:tset"], "did you mean 'test'"),
        (["evaluate", "run", "unlabelled.csv"], "expected the column 'buys'"),
        (["evaluate", "run", "others.csv"], "expected the classes no, yes, got 'maybe'"),
        (
            ["evaluate", "alone", "run:test", "--train", "a", "--held-out", "b"],
            "got a fit that was saved by itself",
        ),
        (
            ["evaluate", "alone", "x.npy", "--train", "train.npz", "--held-out", "held.npz"],
            "got inputs alone",
        ),
        (["ood", "run", "t.csv", "--alpha", "2"], "--alpha: .*expected a rate between 0 and 1"),
        (["ood", "run", "t.csv", "--alpha", "0.001"], "run:calibration: .*rows for alpha=0.001, got 60"),
        (["ood", "run", "t.csv", "-o", "t.csv"], "exists"),
        (["ood", "alone", "t.csv"], "run:calibration: expected the folder of a run"),
        (["diagnose", "run", "rows2.csv"], "expected the 240 rows of which the run was made, got 20 rows"),
    ],
)
def test_wrong_use(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table_frame()
    frame.drop(columns="buys").to_csv("unlabelled.csv", index=False)
    frame.assign(buys=["maybe", *frame["buys"][1:]]).to_csv("others.csv", index=False)
    frame.head(20).to_csv("rows2.csv", index=False)
    np.save("x.npy", arrays()[0])
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("red", "blue", 1), "got other contents: the data were changed since"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "got 239 rows"),
        (None, "t.csv, which does not exist"),
    ],
)
def test_data_that_were_changed_since_are_noticed(
    change: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("t.csv")
    before = path.read_text()
    try:
        path.unlink() if change is None else path.write_text(change(before))  # type: ignore[operator]
        assert main(["evaluate", "run", "run:test"]) == 2
    finally:
        path.write_text(before)
    assert said in capsys.readouterr().err


def test_export_writes_the_graph_of_a_saved_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """The options of other commands hold here; a file that is there stays, and its place is named."""
    found = json_of(capsys, "export", "alone", "-o", "alone.onnx")
    assert found == {"path": "alone.onnx", "bytes": Path("alone.onnx").stat().st_size}
    rows = np.load("test.npz")["x"]
    said = bll.load("alone").predict(rows)
    answered = bll.runtime.load("alone.onnx").predict(rows.astype(np.float32))
    np.testing.assert_allclose(answered["probs"], said.probs.numpy(), atol=1e-5)
    before = Path("alone.onnx").read_bytes()
    assert main(["export", "alone", "-o", "alone.onnx"]) == 2
    assert "--overwrite" in capsys.readouterr().err and Path("alone.onnx").read_bytes() == before
    assert main(["export", "alone", "-o", "alone.txt"]) in (1, 2)
    assert "expected a name that ends in .onnx or .pt2, got alone.txt" in capsys.readouterr().err
    assert not Path("alone.txt").exists()
