"""Stand-ins for mlflow and wandb: the calls that the loggers make, with what they keep in plain lists.

The loggers were run with the real libraries too (mlflow-skinny 3.17 with a SQLite store, wandb 0.31 offline), which are too
heavy for every run of the tests, and of which mlflow holds other packages back.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class Store:
    """Experiments by name, and runs by number."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: list[SimpleNamespace] = []


def mlflow(store: Store, active: str | None = None) -> SimpleNamespace:
    """The module ``mlflow``; ``active``: the run that is active."""

    class MlflowClient:
        def __init__(self, tracking_uri: str | None = None) -> None:
            self.tracking_uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
            number = store.experiments.get(name)
            return None if number is None else SimpleNamespace(experiment_id=number)

        def create_experiment(self, name: str) -> str:
            return store.experiments.setdefault(name, str(len(store.experiments) + 1))

        def create_run(self, experiment_id: str, run_name: str | None = None) -> SimpleNamespace:
            run = SimpleNamespace(
                place=experiment_id, name=run_name, status="RUNNING", metrics=[], params=[], requests=0
            )
            store.runs.append(run)
            return SimpleNamespace(info=SimpleNamespace(run_id=str(len(store.runs) - 1)))

        def log_batch(
            self, run_id: str, metrics: list[Metric] | None = None, params: list[Param] | None = None
        ) -> None:
            assert len(metrics or []) <= 1000
            run = store.runs[int(run_id)]
            run.metrics += metrics or []
            run.params += params or []
            run.requests += 1

        def set_terminated(self, run_id: str, status: str) -> None:
            store.runs[int(run_id)].status = status

    run = None if active is None else SimpleNamespace(info=SimpleNamespace(run_id=active))
    return SimpleNamespace(
        MlflowClient=MlflowClient,
        entities=SimpleNamespace(Metric=Metric, Param=Param),
        active_run=lambda: run,
    )


class Run:
    """A run of wandb."""

    def __init__(self, **options: Any) -> None:
        self.options, self.rows, self.defined = options, list[dict[str, float]](), dict[str, Any]()
        self.exit_code: int | None = None

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options

    def log(self, data: dict[str, float]) -> None:
        self.rows.append(data)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def wandb(runs: list[Run], active: Run | None = None) -> SimpleNamespace:
    """The module ``wandb``."""

    def init(**options: Any) -> Run:
        runs.append(Run(**options))
        return runs[-1]

    return SimpleNamespace(run=active, init=init)
