"""Rows that come from Python: a store of features, or a function of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from bll_pyro.cli.data.arrays import class_numbers
from bll_pyro.cli.data.base import DataSource, Opened
from bll_pyro.cli.usage import UsageError
from bll_pyro.features.data import read
from bll_pyro.features.store import Features
from bll_pyro.files import user_path
from bll_pyro.inference.svi.imported import Imported
from bll_pyro.shards.manifest import MANIFEST
from bll_pyro.tensorfile import sha256


@dataclass(frozen=True, eq=False)
class FeatureStore(DataSource):
    """A store of features that :func:`bll_pyro.extract` made; rows are read from disk when they are used.

    Parameters
    ----------
    path
        The folder.
    """

    path: str

    def open(self) -> Opened:
        """A row is called by its number."""
        try:
            store = Features.open(self.path)
        except ValueError as error:
            raise UsageError(str(error)) from error
        targets = None if store.targets is None else store.targets.numpy()
        return Opened(
            store, targets, range(len(store)), fingerprint=partial(sha256, user_path(self.path) / MANIFEST)
        )


@dataclass(frozen=True, eq=False)
class Function(DataSource):
    """What a function of yours returns: a pair ``(inputs, targets)``, inputs alone, or a dataset of one of these.

    Parameters
    ----------
    function
        Where it is: ``module:function``. The file of the module may lie in the present folder, or beside the YAML.
    """

    function: str

    def __post_init__(self) -> None:
        if ":" not in self.function:
            raise ValueError(f"Function(function=...): expected module:function, got {self.function!r}")

    def open(self) -> Opened:
        """Targets of a dataset are read once, item by item. A row is called by its number."""
        try:
            function = Imported(self.function.replace(":", ".")).found()
        except ValueError as error:
            raise UsageError(
                f"{self.function}: {error}; the file of the module may lie in the present folder, or beside the YAML"
            ) from error
        made = function()
        if isinstance(made, Dataset):
            source = read(made, need_targets=False, what=self.function)
            if not source.has_targets:
                return Opened(made, None, range(source.num_rows))
            given = getattr(
                made, "targets", None
            )  # datasets of torchvision have them, so that no image is read
            if given is None or len(given) != source.num_rows:
                given = [target for _, batch in source.batches(256) for target in _array(batch)]
            targets, classes = class_numbers(np.asarray(_array(given)))
            return Opened(InputsOf(made), targets, range(source.num_rows), classes=classes)
        inputs, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        source = read(inputs, need_targets=False, what=self.function)
        targets, classes = class_numbers(_array(given))
        names = getattr(inputs, "columns", None)
        return Opened(
            inputs,
            targets,
            range(source.num_rows),
            None if names is None else tuple(map(str, names)),
            classes,
        )


class InputsOf(Dataset[Any]):
    """The inputs of a dataset with items ``(x, y)``."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[int(index)][0]


def _array(values: Any) -> Any:
    return values.numpy(force=True) if isinstance(values, Tensor) else values
