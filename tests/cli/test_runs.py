"""``bll fit`` and ``bll compare``: the folder of a run, what is never lost, and that a comparison is made of single runs."""

import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from processes import exit_code
from sklearn.datasets import load_diabetes, load_iris

import bll_pyro as bll
from bll_pyro import likelihoods, priors
from bll_pyro.cli import comparing, main, run_folder, running
from bll_pyro.cli.comparing import Variation, combinations, readable, unique_folders
from bll_pyro.cli.data import BuiltIn
from bll_pyro.cli.data.splits import Splits
from bll_pyro.cli.usage import UsageError
from bll_pyro.cli.yaml_file import Document

YAML = """
data: {class: BuiltIn, name: iris}
layer:
  prior: {class: Normal, scale: 1.0}
inference: {num_epochs: 5}
splits: {calibration: 0.3}
detector: {score: Leverage}
"""
ENTRIES = {
    "experiment.yaml",
    "run.json",
    "metrics.json",
    "log.txt",
    "splits.csv",
    "data.json",
    "model",
    "posterior.nc",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "iris.yaml").write_text(YAML)
    assert main(["fit", str(folder / "iris.yaml"), "-o", str(folder / "iris"), "--quiet"]) == 0
    return folder / "iris"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("iris.yaml").write_text(YAML)
    return tmp_path


def test_a_run_is_whole(finished: Path) -> None:
    assert {one.name for one in finished.iterdir()} == ENTRIES
    assert {one.name for one in finished.parent.iterdir()} == {"iris", "iris.yaml"}
    record = json.loads((finished / "run.json").read_text())
    assert record["seed"] == 0 and record["versions"]["torch"] == torch.__version__.partition("+")[0]
    said = re.findall(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)$", (finished / "log.txt").read_text(), re.MULTILINE
    )
    assert said[0] == "fitting 75 rows" and "evaluating beside the plain head" in said
    with xr.open_datatree(finished / "posterior.nc") as tree:
        assert tree["posterior"]["weight"].sizes["feature"] == 4
        assert list(tree["posterior"]["output"].values) == ["setosa", "versicolor", "virginica"]


def test_a_run_is_what_the_library_gives(finished: Path) -> None:
    """The same parts, fit and figures by calls of the library."""
    data = load_iris()
    x, y = data.data.astype(np.float32), data.target
    parts = run_folder.read_parts(finished)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 75, "calibration": 45, "test": 30}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(150))
    train, held_out, test = ((x[parts[name]], y[parts[name]]) for name in ("train", "calibration", "test"))
    layer = bll.LastLayer(likelihoods.Categorical(3), priors.Normal(1.0))
    fit = bll.fit(layer, train, inference=bll.SVI(num_epochs=5))
    saved = bll.load(finished / "model")
    assert torch.equal(saved.predict(test[0]).probs, fit.predict(test[0]).probs)
    metrics = json.loads((finished / "metrics.json").read_text())
    expected = bll.evaluate(fit, test, held_out=held_out, train=train)
    assert metrics["quality"] == expected.scores and metrics["standard_errors"] == expected.standard_errors
    for head, (nats, error) in expected.gains.items():
        assert metrics["gains"][head] == {"nats": nats, "standard_error": error}
    assert metrics["leave_one_out"]["elpd"] == pytest.approx(float(bll.loo(fit, train).elpd) / 75, rel=1e-6)
    assert metrics["elbo"] == fit.elbo
    detector = bll.ood.Detector(bll.ood.Leverage()).calibrate(fit, held_out[0], train=train)
    verdict = fit.with_detector(detector).predict(x + 3).ood
    assert torch.equal(saved.predict(x + 3).ood.p_value, verdict.p_value)


def test_the_whole_yaml_gives_the_same_run(finished: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copy(finished / "experiment.yaml", here / "again.yaml")
    assert main(["fit", "again.yaml", "--json", "--no-tree"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("run") == "runs/again"
    assert printed == json.loads((finished / "metrics.json").read_text())
    assert {one.name for one in Path("runs/again").iterdir()} == ENTRIES - {"posterior.nc"}
    text = Path("runs/again/experiment.yaml").read_text()
    assert text == (finished / "experiment.yaml").read_text()


# ---- nothing is lost


def refuse_to_fit(*_: Any, **__: Any) -> None:
    raise AssertionError("no work may begin")


def a_run(path: Path) -> None:
    path.mkdir()
    (path / "run.json").write_text("{}")


def a_thesis(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (a_run, [], "in which there is a run; choose another by -o, or give --overwrite"),
        (a_thesis, [], "which is something else; choose another by -o"),
        (a_thesis, ["--overwrite"], "which is something else; choose another by -o"),
        (lambda path: path.write_text("x"), ["--overwrite"], "which is something else"),
        (lambda path: path.symlink_to(path.parent), ["--overwrite"], "which is something else"),
    ],
)  # fmt: skip
def test_what_is_there_stays(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    make: Callable,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(running.bll, "fit", refuse_to_fit)
    make(here / "out")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert main(["fit", "iris.yaml", "-o", "out", *options]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs whose work is one file, or ends as it is told."""

    def cheap(end: BaseException | None = None) -> None:
        def work(job: Any, work: Path, *_: Any) -> dict[str, Any]:
            (work / "metrics.json").write_text("{}")
            if end is not None:
                raise end
            run_folder.write_record(work, 1.0, job.experiment.seed)
            return {"rows": {}, "quality": None}

        monkeypatch.setattr(running, "_work", work)

    return cheap


def test_overwriting(here: Path, cheap: Callable) -> None:
    """The earlier run is there until the new one is whole."""
    a_run(here / "out")
    (here / "out" / "old").touch()
    command = ["fit", "iris.yaml", "-o", "out", "--overwrite"]
    cheap(OSError(errno.ENOSPC, "No space left on device"))
    assert main(command) == 1
    assert (here / "out" / "old").exists()
    cheap()
    assert main(command) == 0
    assert {one.name for one in (here / "out").iterdir()} == {"experiment.yaml", "metrics.json", "run.json"}
    assert {one.name for one in here.iterdir()} == {"iris.yaml", "out"}


@pytest.mark.parametrize(
    ("end", "code", "message", "is_kept"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "No space left on device: 'f'", True),
        (KeyboardInterrupt(), 130, "interrupted", True),
        (ValueError("features are NaN"), 1, "features are NaN", False),
    ],
)  # fmt: skip
def test_a_run_that_ends_early(
    here: Path,
    cheap: Callable,
    capsys: pytest.CaptureFixture,
    end: BaseException,
    code: int,
    message: str,
    is_kept: bool,
) -> None:
    """Nothing under its name; the work is kept where the same command can go on with it."""
    cheap(end)
    assert main(["fit", "iris.yaml", "-o", "out"]) == code
    assert message in capsys.readouterr().err
    assert not (here / "out").exists() and (here / ".out.unfinished").exists() == is_kept
    cheap()
    if is_kept:
        assert main(["fit", "iris.yaml", "-o", "out", "--seed", "1"]) == 2
        assert (
            "got another one; run that one again to go on, or give --overwrite to discard it"
            in capsys.readouterr().err
        )
    assert main(["fit", "iris.yaml", "-o", "out"]) == 0
    assert {one.name for one in here.iterdir()} == {"iris.yaml", "out"}


def test_a_disk_that_cannot_be_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main(["fit", "iris.yaml", "-o", "new/out"]) == 1
    assert "Read-only file system" in capsys.readouterr().err
    assert [one.name for one in here.iterdir()] == ["iris.yaml"]


def test_two_runs_of_one_name(here: Path, cheap: Callable, capsys: pytest.CaptureFixture) -> None:
    from filelock import FileLock

    work = here / ".out.unfinished"
    work.mkdir()
    with FileLock(work / ".lock"):
        assert main(["fit", "iris.yaml", "-o", "out"]) == 1
    assert "which another process or thread is using" in capsys.readouterr().err


def killed_after_the_fit(folder: str, command: list[str]) -> None:
    """Run a command that dies when the figures of its fit are due."""
    os.chdir(folder)
    running.metrics_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
    main(command)


@pytest.mark.slow
def test_a_killed_run_goes_on(here: Path, finished: Path) -> None:
    """A real process, killed after its fit was kept: the same command ends with the metrics of a run that was never stopped."""
    command = ["fit", "iris.yaml", "-o", "out", "--no-tree"]
    assert exit_code(killed_after_the_fit, str(here), command) == -signal.SIGKILL
    assert not (here / "out").exists() and (here / ".out.unfinished" / "checkpoint").is_dir()
    began: list[Any] = []
    with bll.observe(callbacks=[began.append]):
        assert main(command) == 0
    assert not any(record.stage.startswith("SVI") for record in began if record.run.name == "fit"), (
        "fitted twice"
    )
    assert Path("out/metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_too_few_rows_are_said(here: Path, capsys: pytest.CaptureFixture) -> None:
    """No detector and no figures of quality, with the reason, where the parts are missing."""
    assert (
        main(["fit", "iris.yaml", "--splits.calibration", "0", "--no-tree", "--inference.num_epochs", "1"])
        == 0
    )
    said = capsys.readouterr()
    assert (
        "warning: no detector of unknown inputs: expected at least 40 rows in the part calibration, got 0"
        in said.err
    )
    assert "warning: no figures of quality: they need the parts test and calibration" in said.err
    metrics = json.loads(Path("runs/iris/metrics.json").read_text())
    assert metrics["quality"] is None and metrics["detector"] is None


def test_parts_are_stratified_and_follow_the_seed() -> None:
    opened = BuiltIn("iris").open()
    parts, again, other = (Splits(0.1, 0.2, 0.2).of(opened, seed) for seed in (0, 0, 1))
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 75,
        "validation": 15,
        "calibration": 30,
        "test": 30,
    }
    for name, rows in parts.items():
        assert np.bincount(opened.targets[rows]).tolist() == [len(rows) // 3] * 3
        assert np.array_equal(rows, again[name]) and not np.array_equal(rows, other[name])


# ---- comparisons

VARIED = [
    "--vary",
    "layer.prior=Normal,{class: Laplace, scale: 0.5}",
    "--vary",
    "inference.guide=Diagonal,MatrixNormal",
]
MARKING = """
from pathlib import Path

from torch import nn

class Marking(nn.Module):
    def forward(self, inputs):
        with Path("marks.txt").open("a") as marks:
            marks.write(f"{len(inputs)}\\n")
        return inputs * 2
"""


def rows_seen() -> int:
    """How many rows the backbone was given, in whatever process."""
    return sum(map(int, Path("marks.txt").read_text().split()))


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_comparison_is_made_of_single_runs(
    here: Path, capsys: pytest.CaptureFixture, processes: str
) -> None:
    """The same metrics, and a backbone that sees every row once, or not at all where its features are stored."""
    Path("marking.py").write_text(MARKING)
    stored = ["--store", "stored"] if processes == "2" else []
    common = ["iris.yaml", "--backbone", "marking:Marking", "--detector=null", "--json", *stored]
    single = ["--layer.prior", "{class: Laplace, scale: 0.5}", "--inference.guide", "MatrixNormal"]
    assert main(["fit", *common, *single, "--no-tree"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert rows_seen() == 150
    assert main(["compare", *common, *VARIED, "--processes", processes]) == 0
    assert rows_seen() == (150 if stored else 300)
    found = json.loads(capsys.readouterr().out)["fits"]
    assert list(found) == [
        "Normal, Diagonal", "Normal, MatrixNormal", "Laplace(scale=0.5), Diagonal",
        "Laplace(scale=0.5), MatrixNormal",
    ]  # fmt: skip
    assert found == json.loads(Path("runs/iris-compared/comparison.json").read_text())
    assert alone.pop("run") and alone == found["Laplace(scale=0.5), MatrixNormal"]
    written = {one.name for one in Path("runs/iris-compared").iterdir()}
    assert written == {"experiment.yaml", "run.json", "comparison.json", "fits"}
    assert len(list(Path("runs/iris-compared/fits").iterdir())) == 4


def test_one_fit_that_fails_leaves_the_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(job: Any, path: Path, *_: Any, **__: Any) -> dict[str, Any]:
        if job.experiment.seed == 1:
            raise RuntimeError("not positive definite")
        return {
            "quality": {"Bayesian": {"NLL": 0.5}},
            "leave_one_out": {"elpd": -0.4, "se": 0.1, "rows": 9},
            "converged": True,
        }

    monkeypatch.setattr(comparing, "run_job", run)
    assert main(["compare", "iris.yaml", "--vary", "seed=0,1,2", "--processes", "1"]) == 1
    said = capsys.readouterr()
    assert "1 of 3 fits failed: 1" in said.err
    assert re.search(r"^0 +-0\.4000 ± 0\.1000 +0\.5000 +yes$", said.out, re.MULTILINE)
    assert re.search(r"^1 +failed: not positive definite$", said.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected what to vary, got nothing"),
        (["--vary", "layer.prior"], "expected key=value,value such as layer.prior=Normal,Horseshoe, got 'layer.prior'"),
        (["--vary", "layer.prior="], "expected key=value,value"),
        (["--vary", "layer.prior=Normal,Normal"], "expected values that differ"),
        (["--vary", "layer.prior=Normal,Horsesho"], "--layer.prior: layer.prior: expected a class, got 'Horsesho'; did you mean"),
        (["--vary", "seed=0,1", "--report"], "--report: expected fits of the same rows, got other data, splits or seeds"),
        (["--vary", "layer.prior=Normal", "--report", "--splits.test=0"], "--report: expected test rows, got none"),
        (["--vary", "layer.prior=Normal", "--seed", "x"], "--seed: seed: expected a whole number, got 'x'"),
    ],
)  # fmt: skip
def test_wrong_comparisons(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(running.bll, "fit", refuse_to_fit)
    assert main(["compare", "iris.yaml", *options]) == 2
    assert message in capsys.readouterr().err
    assert [one.name for one in here.iterdir()] == ["iris.yaml"]


def test_variations() -> None:
    assert Variation.of("a.b={class: X, s: [1, 2]},Y") == Variation("a.b", ("{class: X, s: [1, 2]}", "Y"))
    with pytest.raises(UsageError):
        Variation.of("=1,2")
    assert (
        readable({"class": "X", "a": [1, {"b": None}]}) == "X(a=[1, (b=None)])" and readable(1e-3) == "0.001"
    )
    both = [Variation("layer.prior", ("Normal()", "{class: Normal}"))]
    assert list(combinations(Document({}, "x"), both)) == ["Normal()", "{class: Normal}"], (
        "no two of one name"
    )
    assert unique_folders({"a b": 1, "a-b": 2, "{}": 3}) == {"a b": "a-b", "a-b": "a-b-2", "{}": "fit"}


# ---- backbones


def test_random_features(here: Path) -> None:
    """Found from the training rows as by the library, and rebuilt from the files of the fit."""
    Path("smooth.yaml").write_text(
        "data: {class: BuiltIn, name: diabetes}\nbackbone: {class: RandomFeatures, num_features: 32, num_rows: 64}\n"
        "inference: Exact\nsplits: {calibration: 0, test: 0.5}\ndetector: null\n"
    )
    assert main(["fit", "smooth.yaml", "--no-tree", "--quiet"]) == 0
    assert main(["predict", "runs/smooth", "diabetes", "-o", "p.csv", "--quiet"]) == 0
    train, data = run_folder.read_parts(Path("runs/smooth"))["train"], load_diabetes()
    x, y = data.data.astype(np.float32), data.target.astype(np.float32)
    layer = bll.LastLayer(likelihoods.Gaussian())
    fit = bll.fit(layer, (x[train], y[train]), bll.random_features(32, num_rows=64), bll.Exact())
    assert np.allclose(pd.read_csv("p.csv")["mean"], fit.predict(x).mean, rtol=1e-5)


NET = """
import torch
from torch import nn


def load():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return net.eval()
"""


def test_bayesianize(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """What ``bll.bayesianize`` gives; and the YAML that it prints runs to the same figures."""
    Path("net_of_the_users.py").write_text(NET)
    command = ["bayesianize", "net_of_the_users:load", "iris", "--splits.calibration", "0.4", "--no-tree"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] == "runs/load" and Path("runs/load/code/net_of_the_users.py").exists()
    parts, data = run_folder.read_parts(Path("runs/load")), load_iris()
    rows = {name: (data.data[index].astype(np.float32), data.target[index]) for name, index in parts.items()}
    net = sys.modules["net_of_the_users"].load()
    fit = bll.bayesianize(net, rows["train"], calibration=rows["calibration"])
    expected = bll.evaluate(fit, rows["test"], held_out=rows["calibration"], train=rows["train"]).scores
    assert printed["quality"]["Bayesian"] == pytest.approx(expected["Bayesian"], rel=1e-5)
    assert main([*command, "--print-config"]) == 0
    Path("net.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "net.yaml", "--no-tree", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "run": ""} == {**printed, "run": ""}
    for option, message in (
        (
            ["--layer.prior", "Horseshoe"],
            "expected a trained network as it is, with the prior around its own head",
        ),
        (
            ["--backbone.prior_scale", "-1"],
            "TrainedNetwork(prior_scale=...): expected a positive number, got -1",
        ),
        (["--backbone.network", "net_of_the_users.lad"], "has no attribute 'lad'"),
    ):
        assert main([*command, *option, "-o", "other"]) == 2
        assert message in capsys.readouterr().err
    del sys.modules["net_of_the_users"]
