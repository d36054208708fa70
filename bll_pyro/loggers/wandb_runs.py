"""``WandB``: a run as a run of Weights & Biases."""

from __future__ import annotations

from typing import Any

from bll_pyro.loggers.base import declaration, needed
from bll_pyro.observation.records import Record, Run


class WandB:
    """Logs steps to Weights & Biases, as metrics ``stage/metric`` against ``stage/step``, and what was asked for as the config.

    If a run of theirs is active it takes them, and stays open. Else each call of the library becomes a run of its own, which
    ends with it.

    Parameters
    ----------
    project
        Name of the project of these runs.
    settings
        Other arguments of ``wandb.init``, such as ``mode="offline"``, ``dir=...``, ``entity=...``.

    Raises
    ------
    ModuleNotFoundError
        If ``wandb`` is not installed.
    """

    def __init__(self, project: str = "bll_pyro", **settings: Any) -> None:
        self._wandb = needed("wandb", "WandB", "wandb")
        self.project, self.settings = project, settings
        self._runs: dict[Run, Any] = {}
        self._own: set[Run] = set()
        self._defined: set[tuple[Run, str]] = set()  # stages whose steps are known there

    def on_start(self, run: Run) -> None:
        """Begin a run, or join the active one."""
        active = self._wandb.run
        if active is None:
            begun = self._wandb.init(
                project=self.project, name=run.name, config=declaration(run), **self.settings
            )
            self._runs[run] = begun
            self._own.add(run)
        else:
            self._runs[run] = active

    def on_step(self, record: Record) -> None:
        """Log one step."""
        theirs, step = self._runs[record.run], f"{record.stage}/step"
        if (record.run, record.stage) not in self._defined:
            self._defined.add((record.run, record.stage))
            theirs.define_metric(step, hidden=True)
            theirs.define_metric(f"{record.stage}/*", step_metric=step)
        if record.metrics:
            named = {f"{record.stage}/{name}": value for name, value in record.metrics.items()}
            theirs.log({step: record.step, **named})

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """End the run if it is ours."""
        theirs = self._runs.pop(run)
        self._defined = {(of, stage) for of, stage in self._defined if of is not run}
        if run in self._own:
            self._own.remove(run)
            theirs.finish(exit_code=0 if error is None else 1)
