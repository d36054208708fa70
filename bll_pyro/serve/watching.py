"""``Watches``: whether the rows that are served have changed, by the p-values of each model's detector."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from bll_pyro.serve.logs import tell
from bll_pyro.serve.models import ServedModel
from bll_pyro.serve.monitoring import Monitor

if TYPE_CHECKING:
    from bll_pyro.ood import Drift

Version = tuple[str, int]  # fingerprint of a model, and the number of its calibration rows


def version_of(model: ServedModel) -> Version | None:
    """What tells whether the evidence so far is of the same model; None for one that cannot be watched."""
    if model.num_calibration is None:
        return None
    return str(model.metadata.get("fingerprint")), model.num_calibration


class Watches:
    """Watches in this process; they load torch when the first one begins.

    Parameters
    ----------
    alpha
        Probability that the alarm of a model ever rises without a change; 0 watches nothing.
    monitor
        Where the evidence is shown.
    """

    def __init__(self, alpha: float, monitor: Monitor) -> None:
        self.alpha, self.monitor = alpha, monitor
        self._watches: dict[str, tuple[Version, Drift]] = {}

    def begin(self, name: str, version: Version | None) -> None:
        """Watch a model that was loaded, with the evidence so far if it is the same as before."""
        if version is None or self.alpha == 0:
            self._watches.pop(name, None)
        elif name not in self._watches or self._watches[name][0] != version:
            from bll_pyro.ood import Drift

            self._watches[name] = (version, Drift(self.alpha, version[1]))
            self.monitor.watched(name, 0.0, False)

    def update(self, name: str, p_values: np.ndarray) -> None:
        """Take in the p-values ``[n]`` of a batch."""
        if name not in self._watches:
            return
        _, watch = self._watches[name]
        before = watch.alarm
        if watch.update(p_values) and not before:
            tell("drift", logging.WARNING, model=name, num_rows=watch.rows)
        self.monitor.watched(name, watch.log_value, watch.alarm)
