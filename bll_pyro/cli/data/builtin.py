"""Small data sets that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bll_pyro.cli.data.base import DataSource, Opened
from bll_pyro.cli.usage import nearest

CLASSES = ("breast_cancer", "digits", "iris", "wine")
VALUES = ("diabetes",)


@dataclass(frozen=True, eq=False)
class BuiltIn(DataSource):
    """A data set of scikit-learn: ``breast_cancer``, ``digits``, ``iris``, ``wine`` (classes), ``diabetes`` (values).

    Parameters
    ----------
    name
        Which one.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in CLASSES + VALUES:
            raise ValueError(
                f"BuiltIn(name=...): expected one of {', '.join(CLASSES + VALUES)}, got {self.name!r}; "
                f"{nearest(str(self.name), CLASSES + VALUES)}"
            )

    def open(self) -> Opened:
        """Inputs ``[N, D]`` in float32, targets ``[N]``."""
        from sklearn import datasets

        bunch: Any = getattr(datasets, f"load_{self.name}")()
        is_class = self.name in CLASSES
        targets = np.asarray(bunch.target, np.int64 if is_class else np.float32)
        return Opened(
            np.asarray(bunch.data, np.float32),
            targets,
            range(len(targets)),
            tuple(map(str, bunch.feature_names)),
            tuple(map(str, bunch.target_names)) if is_class else None,
        )
