"""Loggers write what they are told: every step, every metric, of every run."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from logger_stand_ins import Run, Store, mlflow, wandb

import bll_pyro as bll
from bll_pyro.likelihoods import Gaussian
from bll_pyro.loggers import CSV, MLflow, TensorBoard, WandB
from bll_pyro.observation import Record, stage

pytestmark = pytest.mark.filterwarnings("ignore:the ELBO was still rising", "ignore:.*steps are too few")

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=RANDOM)
NUMBERS = 5 * X[:, 0] + 3 + torch.randn(24, generator=RANDOM)
LINE = bll.LastLayer(Gaussian())
SVI = bll.SVI(num_epochs=3, batch_size=8)
Told = list[Record]


def fitted(logger: object, seed: int = 0) -> tuple[bll.Fit, Told]:
    """A fit that a logger watches, and what it was told."""
    told: Told = []
    fit = bll.fit(
        LINE,
        (X, NUMBERS),
        inference=SVI,
        seed=seed,
        validation_data=(X, NUMBERS),
        callbacks=[logger, told.append],
    )
    return fit, told


def one_step(loggers: list[object], error: BaseException) -> None:
    """A run that fails after its first step."""
    with bll.observe(callbacks=loggers), stage("a") as steps:
        steps.advance(elbo=1.0)
        raise error


def values(told: Told, metric: str) -> list[tuple[int, float]]:
    return [(record.step, record.metrics[metric]) for record in told if metric in record.metrics]


def number(text: str) -> float:
    return float(text or "nan")


def test_csv_is_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.csv"
    logger = CSV(path)
    assert not path.parent.exists()  # nothing is made before there is something to write
    fit, told = fitted(logger)
    # as text and by Python's float: before pandas 3 its own parser loses the last bits
    table = pd.read_csv(path, converters={"elbo": number, "nll": number})
    assert list(table.columns[:5]) == ["run", "stage", "step", "total", "seconds"]
    assert set(table.columns[5:]) == {"elbo", "learning_rate", "rows_per_second", "nll"}
    assert len(table) == len(told) and set(table["run"]) == {1} and set(table["stage"]) == {"SVI"}
    steps = table.dropna(subset="elbo")
    assert steps["step"].tolist() == list(range(1, 10)) and set(steps["total"]) == {9}
    assert steps["elbo"].tolist() == fit.trace.elbo.tolist()
    assert table["nll"].dropna().tolist() == fit.trace.validation


def test_csv_goes_on(tmp_path: Path) -> None:
    """Of several runs, by this logger and by a later one; a new metric is a new column, and earlier lines stay."""
    path = tmp_path / "log.csv"
    logger = CSV(path)
    with bll.observe(callbacks=[logger]):
        with stage("a", 2) as steps:
            steps.advance(elbo=1.0)
            assert path.read_text().count("\n") == 2  # at once
            steps.advance(elbo=2.0, nll=0.5)
        with stage("b, with a comma") as steps:
            steps.advance(divergences=3)
    with bll.observe(callbacks=[CSV(path)]), stage("c") as steps:
        steps.advance(elbo=4.0)
    table = pd.read_csv(path)
    assert table["run"].tolist() == [1, 1, 2, 3]
    assert table["stage"].tolist() == ["a", "a", "b, with a comma", "c"]
    assert table[["elbo", "nll", "divergences"]].fillna(-1).values.tolist() == [
        *([1, -1, -1], [2, 0.5, -1], [-1, -1, 3], [4, -1, -1]),
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_csv_of_two_calls_at_once(tmp_path: Path) -> None:
    """One inside of the other, as from a callback."""
    logger = CSV(tmp_path / "log.csv")
    with bll.observe(callbacks=[logger]), stage("outer") as outer:
        outer.advance(elbo=1.0)
        bll.fit(LINE, (X, NUMBERS), inference=bll.Exact(), callbacks=[])
        outer.advance(elbo=2.0)
    assert pd.read_csv(tmp_path / "log.csv")["stage"].tolist() == ["outer", "sums", "outer"]


def test_csv_leaves_files_of_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected a new file or one of this logger, got"):
        CSV(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_csv_keeps_what_there_was_before_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        one_step([CSV(tmp_path / "log.csv")], KeyboardInterrupt())
    assert len(pd.read_csv(tmp_path / "log.csv")) == 1


def test_tensorboard(tmp_path: Path) -> None:
    """The files of the real library, read by its own reader; a run has a folder of its own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path)
    told = [fitted(logger, seed)[1] for seed in range(2)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fit-1", "fit-2"]
    for number, of_run in enumerate(told, 1):
        events = EventAccumulator(str(tmp_path / f"fit-{number}")).Reload()
        names = {"elbo", "learning_rate", "rows_per_second", "nll"}
        assert set(events.Tags()["scalars"]) == {f"SVI/{name}" for name in names}
        for name in names:
            found = [(event.step, event.value) for event in events.Scalars(f"SVI/{name}")]
            assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in values(of_run, name)]


@pytest.mark.parametrize("is_active", [False, True])
def test_mlflow(monkeypatch: pytest.MonkeyPatch, is_active: bool) -> None:
    """A run of its own for each call, or the user's run, which stays open."""
    store = Store()
    if is_active:
        mlflow(store).MlflowClient().create_run("0", run_name="mine")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow(store, "0" if is_active else None))
    logger = MLflow("digits", "sqlite:///x.db")
    told = [fitted(logger)[1], fitted(logger)[1]]
    runs = store.runs
    if is_active:
        assert [run.name for run in runs] == ["mine"] and runs[0].status == "RUNNING"
        told = [told[0] + told[1]]
    else:
        assert [run.name for run in runs] == ["fit", "fit"] and {run.status for run in runs} == {"FINISHED"}
        assert store.experiments == {"digits": "1"} and {run.place for run in runs} == {"1"}
        assert dict(runs[0].params).keys() == {"layer", "inference", "seed"}
    for run, of_run in zip(runs, told, strict=True):
        for name in ("elbo", "nll"):
            found = [(metric.step, metric.value) for metric in run.metrics if metric.key == f"SVI/{name}"]
            assert found == values(of_run, name)


def test_mlflow_sends_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow(store))
    monkeypatch.setattr("bll_pyro.loggers.mlflow_runs.PAUSE", 1e9)
    with bll.observe(callbacks=[MLflow()]), stage("StudentT(df=[4])") as steps:
        for _ in range(1200):
            steps.advance(elbo=1.0)
    (run,) = store.runs
    assert len(run.metrics) == 1200 and run.requests == 4  # of parameters, 500, 500 and 200
    assert {metric.key for metric in run.metrics} == {"StudentT_df__4__/elbo"}  # what MLflow takes


@pytest.mark.parametrize(
    ("error", "status", "exit_code"), [(ValueError(), "FAILED", 1), (KeyboardInterrupt(), "KILLED", 1)]
)
def test_services_learn_how_a_run_ended(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str, exit_code: int
) -> None:
    store, runs = Store(), list[Run]()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow(store))
    monkeypatch.setitem(sys.modules, "wandb", wandb(runs))
    with pytest.raises(type(error)):
        one_step([MLflow(), WandB()], error)
    assert (store.runs[0].status, runs[0].exit_code) == (status, exit_code)
    assert len(store.runs[0].metrics) == len(runs[0].rows) == 1


@pytest.mark.parametrize("is_active", [False, True])
def test_wandb(monkeypatch: pytest.MonkeyPatch, is_active: bool) -> None:
    runs, active = list[Run](), Run() if is_active else None
    monkeypatch.setitem(sys.modules, "wandb", wandb(runs, active))
    fit, told = fitted(WandB("digits", mode="offline"))
    (run,) = runs if active is None else [active]
    if active is None:
        assert run.options["project"] == "digits" and run.options["mode"] == "offline"
        assert run.options["name"] == "fit" and run.options["config"].keys() == {"layer", "inference", "seed"}
    assert run.exit_code == (None if is_active else 0)
    assert run.defined["SVI/*"] == {"step_metric": "SVI/step"}
    steps = [(row["SVI/step"], row["SVI/elbo"]) for row in run.rows if "SVI/elbo" in row]
    assert steps == values(told, "elbo") == list(enumerate(fit.trace.elbo.tolist(), 1))


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [
        (lambda: TensorBoard("runs"), "tensorboard", "tensorboard"),
        (MLflow, "mlflow", "mlflow-skinny"),
        (WandB, "wandb", "wandb"),
    ],
)
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, make, module: str, package: str) -> None:
    """One line, with the command, when the logger is made."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"got none: pip install {package}$"):
        make()
