"""``MLflow``: a run as a run of MLflow."""

from __future__ import annotations

import re
import time
from typing import Any

from bll_pyro.loggers.base import declaration, needed
from bll_pyro.observation.records import Record, Run

MOST = 500  # metrics in one request; MLflow takes up to 1,000
PAUSE = 1.0  # seconds between two requests


class MLflow:
    """Logs steps as metrics ``stage/metric`` of an MLflow run, and what was asked for as its parameters.

    If a run of MLflow is active in this thread it takes them, and stays open. Else each call of the library becomes a run of
    its own, which ends with it: ``FINISHED``, ``FAILED``, or ``KILLED`` by Ctrl-C. MLflow's own settings are left alone.

    Parameters
    ----------
    experiment
        Name of the experiment of these runs, which is made if there is none.
    tracking_uri
        Where they go, such as ``"sqlite:///mlflow.db"``; None takes MLflow's own setting.

    Raises
    ------
    ModuleNotFoundError
        If neither ``mlflow`` nor ``mlflow-skinny`` is installed.
    """

    def __init__(self, experiment: str = "bll_pyro", tracking_uri: str | None = None) -> None:
        self._mlflow = needed("mlflow", "MLflow", "mlflow-skinny")
        self.experiment, self.tracking_uri = experiment, tracking_uri
        self._logs: dict[Run, RunLog] = {}

    def on_start(self, run: Run) -> None:
        """Begin a run, or join the active one."""
        active = self._mlflow.active_run()
        client = self._mlflow.MlflowClient(self.tracking_uri)
        if active is None:
            found = client.get_experiment_by_name(self.experiment)
            place = client.create_experiment(self.experiment) if found is None else found.experiment_id
            run_id = client.create_run(place, run_name=run.name).info.run_id
        else:
            run_id = active.info.run_id
        self._logs[run] = RunLog(self._mlflow.entities, client, run_id, is_own=active is None)
        self._logs[run].declare(declaration(run))

    def on_step(self, record: Record) -> None:
        """Take the metrics of one step."""
        self._logs[record.run].take(record)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Send what is left, and end the run if it is ours."""
        self._logs.pop(run).end(error)


class RunLog:
    """The metrics of one run, which are sent several at a time."""

    def __init__(self, entities: Any, client: Any, run_id: str, is_own: bool) -> None:
        self.entities, self.client, self.run_id, self.is_own = entities, client, run_id, is_own
        self.waiting: list[Any] = []
        self.sent = time.monotonic()

    def declare(self, said: dict[str, str]) -> None:
        """Log parameters; a run that is not ours may have others of these names, and keeps them."""
        if self.is_own:
            self.client.log_batch(self.run_id, params=[self.entities.Param(*pair) for pair in said.items()])

    def take(self, record: Record) -> None:
        """Keep the metrics of a step, and send what has come together if it is enough or old."""
        now = round(time.time() * 1000)
        for name, value in record.metrics.items():
            key = re.sub(r"[^\w\-. :/]", "_", f"{record.stage}/{name}")  # what MLflow takes
            self.waiting.append(self.entities.Metric(key, value, now, record.step))
        if len(self.waiting) >= MOST or time.monotonic() - self.sent >= PAUSE:
            self.send()

    def send(self) -> None:
        """Send all that is waiting."""
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            self.client.log_batch(self.run_id, metrics=waiting)
        self.sent = time.monotonic()

    def end(self, error: BaseException | None) -> None:
        """Send the rest, and say how it ended."""
        try:
            self.send()
        finally:
            if self.is_own:
                ends = {type(None): "FINISHED", KeyboardInterrupt: "KILLED"}
                self.client.set_terminated(self.run_id, ends.get(type(error), "FAILED"))
