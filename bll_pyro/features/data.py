"""The reader of all forms of data: arrays, tensors, data frames, datasets, loaders and stores of features."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bll_pyro.features.arrays import check_finite, to_tensor
from bll_pyro.features.columns import Data
from bll_pyro.features.loading import DatasetSource, LoaderSource
from bll_pyro.features.sources import FeaturesSource, Source, TensorSource
from bll_pyro.features.store import Features

__all__ = ["Data", "Source", "check_finite", "read"]


def read(
    data: Any, *, need_targets: bool, what: str = "data", min_rows: int = 1, num_workers: int = 0
) -> Source:
    """Return `data` as a source of rows; values and dtypes stay as they are.

    Parameters
    ----------
    data
        A tuple ``(inputs, targets)`` of arrays, tensors, data frames or lists; one of these alone, without targets; a
        torch Dataset with items ``(x, y)`` or ``x``; a DataLoader, whose order and batches are kept; a `Features` store,
        alone or in a tuple with targets; any of these in a `Data`, with weights or exposures.
    need_targets
        Whether to raise a ValueError if there are no targets.
    what
        The name of the data in error messages.
    min_rows
        Smallest number of rows.
    num_workers
        Number of processes that load the items of a Dataset; a DataLoader has its own setting.

    Raises
    ------
    TypeError
        If this is not a form of data, or does not consist of numbers.
    ValueError
        If inputs and targets differ in length, targets are missing, rows are too few, their number is unknown, or a
        loader would leave some out.
    """
    source = _source(data.rows if isinstance(data, Data) else data, what, num_workers)
    if isinstance(data, Data):
        source.columns = data.columns(source.num_rows, source.shuffled, what)
    if source.num_rows < min_rows:
        rows = "row" if min_rows == 1 else "rows"
        raise ValueError(
            f"{what}: expected at least {min_rows} {rows}, got {source.num_rows}; give more data"
        )
    if need_targets and not source.has_targets:
        raise ValueError(
            f"{what}: expected inputs and targets, got inputs alone; pass a tuple (inputs, targets), or a dataset "
            "whose items are (x, y)"
        )
    return source


def _source(data: Any, what: str, num_workers: int) -> Source:
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        data = tuple(data.tensors) if len(data.tensors) == 2 else data.tensors[0]
    if isinstance(data, DataLoader):
        return LoaderSource(data, what)
    if isinstance(data, Dataset):
        return DatasetSource(data, what, num_workers)
    if isinstance(data, Features):
        return FeaturesSource(data, data.targets)
    if not isinstance(data, tuple):
        return TensorSource(_rows(data, what), None)
    if len(data) != 2:
        raise ValueError(
            f"{what}: expected a tuple (inputs, targets), got a tuple of {len(data)}; pass inputs without targets as an "
            "array, and several inputs as a Dataset with items ((x1, x2), y)"
        )
    inputs, targets = data
    if not isinstance(inputs, Features):
        inputs = _rows(inputs, f"inputs of {what}")
    if targets is not None:
        targets = _rows(targets, f"targets of {what}")
        num_inputs = inputs.num_rows if isinstance(inputs, Features) else len(inputs)
        if num_inputs != len(targets):
            raise ValueError(
                f"{what}: expected as many targets as inputs, got {num_inputs} inputs and {len(targets)} targets; "
                "both need one entry per row"
            )
    return FeaturesSource(inputs, targets) if isinstance(inputs, Features) else TensorSource(inputs, targets)


def _rows(array: Any, what: str) -> Tensor:
    tensor = to_tensor(array, what)
    if tensor.ndim == 0:
        raise ValueError(f"{what}: expected one entry per row, got a single number; put it into a list")
    return tensor
