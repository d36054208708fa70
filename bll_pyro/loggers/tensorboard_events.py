"""``TensorBoard``: curves of a run in TensorBoard's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bll_pyro.files import user_path
from bll_pyro.loggers.base import declaration, needed
from bll_pyro.observation.records import Record, Run


class TensorBoard:
    """Writes steps as scalars for TensorBoard: ``tensorboard --logdir FOLDER``.

    Each run has a folder of its own in ``folder``, ``fit-1``, ``fit-2``, ..., with the number that is free, and so a curve of
    its own. Scalars are named ``stage/metric``. What the run was asked to do is under "Text".

    Parameters
    ----------
    folder
        Where the runs go.

    Raises
    ------
    ModuleNotFoundError
        If ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        needed("tensorboard", "TensorBoard", "tensorboard")
        self.folder = user_path(folder)
        self._writers: dict[Run, Any] = {}

    def on_start(self, run: Run) -> None:
        """Open the run's folder."""
        from torch.utils.tensorboard import SummaryWriter

        number = 1
        while True:
            place = self.folder / f"{run.name}-{number}"
            try:
                place.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        self._writers[run] = writer = SummaryWriter(str(place))
        for name, text in declaration(run).items():
            writer.add_text(name, text)

    def on_step(self, record: Record) -> None:
        """Write the scalars of one step."""
        writer = self._writers[record.run]
        for name, value in record.metrics.items():
            writer.add_scalar(f"{record.stage}/{name}", value, record.step)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Close the files."""
        self._writers.pop(run).close()
