"""``bll predict``: the rows of ``fit.predict`` by name, in files that are whole or not there."""

import json
import os
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from command_cases import arrays, table_frame, write_data
from processes import exit_code

import bll_pyro as bll
from bll_pyro.cli import main, predicting, row_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a table, and more rows of it."""
    folder = tmp_path_factory.mktemp("predict")
    write_data(folder, "csv")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "e.yaml", "-o", "run", "--no-tree", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def new_rows(num_rows: int = 40) -> pd.DataFrame:
    return table_frame(300).iloc[300 - num_rows :].reset_index(drop=True)


def by_hand(frame: pd.DataFrame) -> bll.prediction.ClassPrediction:
    """The features as they are declared, through the fit."""
    colours = pd.get_dummies(frame["colour"])[["blue", "green", "red"]]
    features = pd.concat([frame["age"], colours, frame["visits"]], axis=1).to_numpy(np.float32)
    return bll.load("run/model").predict(features)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_are_those_of_the_fit(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the order of the columns; read back by pandas and polars."""
    frame = new_rows()
    frame[["visits", "customer", "colour", "age"]].to_csv("new.csv", index=False)
    name = f"p{suffix}"
    assert main(["predict", "run", "new.csv", "-o", name, "--overwrite", "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert said.err == "" and summary["rows"] == 40 and summary["path"] == name
    read = (pd.read_csv, pl.read_csv) if suffix == ".csv" else (pd.read_parquet, pl.read_parquet)
    table, other = read[0](name), read[1](name)
    assert list(table) == other.columns == summary["columns"]
    assert table["row_id"].tolist() == other["row_id"].to_list() == frame["customer"].tolist()
    expected = by_hand(frame)
    for column in ("confidence", "total", "aleatoric", "epistemic"):
        assert np.allclose(table[column], getattr(expected, column), atol=1e-6)
        assert np.allclose(other[column].to_numpy(), table[column])
    assert np.allclose(table[["p_no", "p_yes"]], expected.probs, atol=1e-6)
    assert table["label"].tolist() == np.array(["no", "yes"])[expected.probs.argmax(1)].tolist()
    assert table["is_ood"].tolist() == expected.ood.is_ood.tolist()
    assert np.allclose(table["ood_p_value"], expected.ood.p_value)
    assert summary["alarms"] == int(expected.ood.is_ood.sum())
    drift = bll.ood.Drift(0.01)
    drift.update(expected.ood)
    assert summary["drift"] == {
        "alpha": 0.01,
        "alarm": False,
        "alarm_row": None,
        "log_value": pytest.approx(drift.log_value),
        "threshold": drift.threshold,
    }


def test_drift_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows far from all that is known, in the order of the file."""
    frame = pd.concat([new_rows(20), new_rows(40).assign(age=9000.0, visits=9000.0)])
    frame.to_csv("later.csv", index=False)
    command = ["predict", "run", "later.csv", "-o", "later_p.csv", "--overwrite"]
    assert main([*command, "--drift-alpha", "0.05"]) == 0
    drift = bll.ood.Drift(0.05)
    assert drift.update(by_hand(frame).ood) and drift.alarm_row > 20
    assert f"drift: up to row {drift.alarm_row} more rows are strange" in capsys.readouterr().out
    assert main([*command, "--drift-alpha", "1.5"]) == 2
    assert "--drift-alpha" in capsys.readouterr().err


def test_a_category_that_is_not_known_counts_as_none(capsys: pytest.CaptureFixture[str]) -> None:
    frame = new_rows(4)
    frame.loc[1, "colour"] = "violet"
    frame.to_csv("violet.csv", index=False)
    assert main(["predict", "run", "violet.csv", "-o", "violet.parquet", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unknown_categories"] == {"colour": 1}
    assert "column 'colour': 1 rows have a category" in said.err


def test_a_table_without_the_names_of_the_rows_is_numbered() -> None:
    new_rows(5).drop(columns=["customer", "buys"]).to_csv("unnamed.csv", index=False)
    assert main(["predict", "run", "unnamed.csv", "-o", "unnamed.parquet"]) == 0
    assert pd.read_parquet("unnamed.parquet")["row_id"].tolist() == [0, 1, 2, 3, 4]


def with_text(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.astype({"age": object})
    frame.loc[7, "age"] = "old"
    return frame


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda frame: frame.drop(columns="age"),
            "expected the column 'age', got a table with customer, colour, visits, buys",
        ),
        (lambda frame: frame.rename(columns={"age": "Age"}), "did you mean 'Age'"),
        (with_text, "column 'age': expected numbers, got 'old' in row 7"),
        (
            lambda frame: frame.assign(visits=[None, *frame["visits"][1:]]),
            "column 'visits'.*missing, the first in row 0",
        ),
    ],
)
def test_tables_that_do_not_fit(change: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(new_rows()).to_csv("bad.csv", index=False)  # type: ignore[operator]
    assert main(["predict", "run", "bad.csv", "-o", "bad_out.csv"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bll predict: error:") and "Traceback" not in err
    assert re.search(said, err)
    assert not [name for name in os.listdir() if "bad_out" in name]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none", "t.csv", "-o", "x.csv"], 2, "none, which does not exist"),
        (["empty", "t.csv", "-o", "x.csv"], 2, "empty, which is neither"),
        (["run", "none.csv", "-o", "x.csv"], 2, "none.csv, which does not exist"),
        (["run", "empty", "-o", "x.csv"], 2, "expected images"),
        (["run", "t.csv", "-o", "x.txt"], 2, "expected a file (.csv or .parquet) to write"),
        (["run", "t.csv", "-o", "t.csv"], 2, "exists; choose another name, or give --overwrite"),
        (["run", "t.csv", "-o", "empty"], 2, "expected a file"),
        (["run", "t.csv", "-o", "x.csv", "--skip-bad"], 2, "expected a folder of images"),
        (["run", "t.csv", "-o", "x.csv", "--data.indx", "a"], 2, "did you mean 'index'"),
        (["run", "t.csv", "-o", "x.csv", "--layer.bias", "false"], 2, "expected options of the data"),
        (["run", "t.csv", "-o", "/proc/x.csv"], 1, "expected to write /proc/x.csv"),
    ],
)
def test_wrong_use(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir(exist_ok=True)
    before = Path("t.csv").read_bytes()
    assert main(["predict", *arguments]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert Path("t.csv").read_bytes() == before and not Path("x.csv").exists()


@pytest.mark.parametrize("where", ["run.json", "model/manifest.json"])
def test_a_model_of_a_newer_version(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("newer", ignore_errors=True)
    shutil.copytree("run", "newer")
    path = Path("newer") / where
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    assert main(["predict", "newer", "t.csv", "-o", "x.csv"]) == 1
    assert "format version <= 1, got 99; update bll_pyro" in capsys.readouterr().err


# ---- files that are whole or not there


def killed_in_block(folder: str, number: int) -> None:
    """Predict 40 rows, 8 at a time, and die while one of the blocks is written."""
    os.chdir(folder)
    predicting.MOST_ROWS = 8  # type: ignore[misc]
    frame_of, blocks = predicting.frame_of, []

    def frame_or_death(*arguments: object) -> pd.DataFrame:
        blocks.append(1)
        if len(blocks) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return frame_of(*arguments)  # type: ignore[arg-type]

    predicting.frame_of = frame_or_death  # type: ignore[assignment]
    main(["predict", "run", "killed.csv", "-o", "killed.parquet"])


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_no_file(folder: Path) -> None:
    new_rows().to_csv("killed.csv", index=False)
    for number in range(1, 6):
        assert exit_code(killed_in_block, str(folder), number) == -signal.SIGKILL
        assert not Path("killed.parquet").exists()
    assert Path(".killed.parquet.partial").exists()
    assert main(["predict", "run", "killed.csv", "-o", "killed.parquet"]) == 0
    assert len(pd.read_parquet("killed.parquet")) == 40
    assert not [name for name in os.listdir() if name.startswith(".killed")]


def on_a_full_disk(folder: str) -> None:
    """Files of this process can have 4 KiB, as on a disk that has no more."""
    os.chdir(folder)
    sys.dont_write_bytecode = True  # a module compiled here for the first time would be cut, for good
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with Path("said.txt").open("w") as sys.stderr:
        sys.exit(main(["predict", "run", "t.csv", "-o", "full.csv"]))


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(folder: Path) -> None:
    assert exit_code(on_a_full_disk, str(folder)) == 1
    assert "expected to write" in Path("said.txt").read_text() and "make room" in Path("said.txt").read_text()
    assert not [name for name in os.listdir() if "full" in name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_failure_keeps_the_earlier_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with row_files.row_file(path, overwrite=False) as write:
        write(pd.DataFrame({"a": [1]}))
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), row_files.row_file(path, overwrite=True) as write:  # noqa: PT012
        write(pd.DataFrame({"a": [2]}))
        raise ZeroDivisionError
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with row_files.row_file(path, overwrite=True) as write:
        write(pd.DataFrame({"a": [2]}))
        write(pd.DataFrame({"a": [3]}))
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    assert read(path)["a"].tolist() == [2, 3] and os.listdir(tmp_path) == [path.name]


def test_without_arrow_pandas_writes_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"row_id": ["a,b", 'say "c"'], "label": [1, 2], "mean": np.float32([0.1, -2.5])})
    written = []
    for path, arrow in ((tmp_path / "a.csv", True), (tmp_path / "b.csv", False)):
        with monkeypatch.context() as patch:
            if not arrow:
                patch.setitem(sys.modules, "pyarrow", None)
            with row_files.row_file(path, overwrite=False) as write:
                write(frame)
                write(frame)
        written.append(path.read_text())
    assert written[0] == written[1] and len(written[0].splitlines()) == 5


def test_rows_are_counted_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar makes of it the time that is left; what goes on inside of a block is not told."""
    monkeypatch.setattr(predicting, "MOST_ROWS", 16)
    told: list[bll.Record] = []
    new_rows().to_csv("counted.csv", index=False)
    with bll.observe(callbacks=[told.append]):
        assert main(["predict", "run", "counted.csv", "-o", "counted.csv.parquet"]) == 0
    assert [(one.stage, one.step, one.total) for one in told] == [
        ("predict", step, 40) for step in (16, 32, 40)
    ]


# ---- many rows


def million_rows(folder: str) -> None:
    """Predict a million rows of features; what it took goes into a file."""
    import time

    os.chdir(folder)
    number = 1_000_000
    x = np.random.default_rng(0).normal(size=(number, 16)).astype(np.float32)
    y = x[:, 0] + 0.3
    fit = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (x[:1000], y[:1000] + x[:1000, 1]), inference=bll.Exact()
    )
    fit.save("million")
    np.save("million.npy", x)
    fit.predict(x[:2048])
    began = time.process_time()
    mean = fit.predict(x).mean.numpy()
    in_memory = time.process_time() - began
    np.save("mean.npy", mean)
    del x, mean
    held: list[int] = []
    frame_of = predicting.frame_of

    def watched(*arguments: object) -> pd.DataFrame:
        lines = Path("/proc/self/status").read_text().splitlines()
        held.append(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))
        return frame_of(*arguments)  # type: ignore[arg-type]

    predicting.frame_of = watched  # type: ignore[assignment]
    began = time.process_time()
    code = main(["predict", "million", "million.npy", "-o", "million.parquet", "--quiet"])
    found = {"held": held, "in_memory": in_memory, "parquet": time.process_time() - began}
    began = time.process_time()
    code += main(["predict", "million", "million.npy", "-o", "million.csv", "--quiet"])
    Path("million.json").write_text(json.dumps({**found, "csv": time.process_time() - began}))
    sys.exit(code)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_a_million_rows_in_flat_memory(folder: Path) -> None:
    assert exit_code(million_rows, str(folder)) == 0
    found = json.loads(Path("million.json").read_text())
    held = found["held"]
    half = len(held) // 2  # Parquet, then CSV
    assert half > 25 and max(held[half - 10 : half]) - max(held[3:13]) < 16 * 1024, (
        held
    )  # KiB; files have more than 40 MB
    assert max(held[-10:]) - max(held[half + 3 : half + 13]) < 16 * 1024, held
    assert found["in_memory"] / found["parquet"] > 0.6 and found["in_memory"] / found["csv"] > 0.6, found
    table = pd.read_parquet("million.parquet")
    assert Path("million.parquet").stat().st_size > 15e6 and (table["row_id"] == np.arange(1_000_000)).all()
    assert np.array_equal(table["mean"], np.load("mean.npy"))
    others = (
        pl.read_parquet("million.parquet", columns=["mean"]),
        pl.read_csv("million.csv", columns=["mean"]),
        pd.read_csv("million.csv", usecols=["mean"]),
    )
    for other in others:
        assert np.array_equal(other["mean"].to_numpy().astype(np.float32), table["mean"])


def test_a_fit_that_was_saved_by_itself() -> None:
    """Features from a file of arrays; columns of a table in the order that they have."""
    x, y = arrays()
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(num_classes=2)), (x, y), inference=bll.Laplace())
    fit.save("alone")
    np.save("x.npy", x)
    pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y).to_csv("abc.csv", index=False)
    assert main(["predict", "alone", "x.npy", "-o", "one.parquet"]) == 0
    assert main(["predict", "alone", "abc.csv", "-o", "two.parquet", "--data.target", "y"]) == 0
    one, two = pd.read_parquet("one.parquet"), pd.read_parquet("two.parquet")
    assert np.allclose(one["p1"], fit.predict(x).probs[:, 1])
    pd.testing.assert_frame_equal(one, two, check_exact=False)
    assert "is_ood" not in one
