"""``extract``: features of the rows of a data set of Ray Data, in a store."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.left_out import rows_left_out
from bll_pyro.distributed.on_ray.passing import pass_rows
from bll_pyro.distributed.on_ray.report import RowsReport
from bll_pyro.distributed.on_ray.work import Work
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.features.extraction import features_key
from bll_pyro.features.forward import compute_features, frozen
from bll_pyro.features.store import Features
from bll_pyro.features.tables import names_after
from bll_pyro.observation import call
from bll_pyro.ray_environment import connected
from bll_pyro.shards.commit import read_ids
from bll_pyro.shards.ids import Ids
from bll_pyro.shards.manifest import MANIFEST, read_manifest
from bll_pyro.shards.parts import PartWriter, WrittenPart
from bll_pyro.shards.place import Place, place_of


@call("extract")
def extract(
    rows: Any,
    backbone: nn.Module | None,
    store: str | Path,
    *,
    inputs: str | Sequence[str] = "inputs",
    targets: str | None = None,
    row_id: str = "row_id",
    transform: Callable[[Any], Any] | None = None,
    dtype: torch.dtype | None = None,
    workers: Workers | None = None,
) -> RowsReport:
    """Compute the features of all rows of a data set on Ray, each once, and make a store of them.

    The same call goes on where an earlier one was stopped, by whatever. The store has the same hash whoever computed which part,
    and ``bll.Features.open(store)`` opens it. Ray is that of this process or of ``RAY_ADDRESS``; without either one is started on
    this machine, and ends with the call.

    Parameters
    ----------
    rows
        A ``ray.data.Dataset``, or paths of Parquet files or of folders of them, on disks that all machines see.
    backbone
        A module that maps a batch of inputs to features ``[n, D]``; None if the inputs are features already.
    store
        Folder or URL of the store, that all machines see: new, or of a call that was stopped.
    inputs
        Column of the inputs, lists or tensors ``[N, ...]``; or several columns of numbers, one for each feature.
    targets
        Column of the targets, numbers or lists of T numbers; None for none.
    row_id
        Column of the ids, whole numbers or texts, each of which occurs once. Ids that increase along the rows take the least work.
    transform
        From the inputs of some rows, an array, to those of the backbone, for instance pixels to normalised floats.
    dtype
        Floating-point type of the stored features; None keeps that of the backbone's output.
    workers
        Number and size of the actors, size of the parts, time-out, retries.

    Returns
    -------
    RowsReport
        Numbers of rows done, skipped and left out.

    Raises
    ------
    ValueError
        If a column is missing, an id occurs twice, features are not finite (with the ids of the rows), or the store is of another
        backbone or other columns. What is finished stays, for the same call once this is mended.
    OSError
        If the store cannot be written, as on a full disk.
    ModuleNotFoundError
        Without Ray.
    """
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: expected a torch.nn.Module or None, got {type(backbone).__name__}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: expected a floating-point type, got {dtype}; use torch.float32")
    workers = Workers() if workers is None else workers
    columns = RowColumns.of(inputs, row_id=row_id, targets=targets, transform=transform)
    place, names = place_of(store), names_after(backbone, columns.feature_names)
    key = features_key(backbone, columns.fingerprint, dtype, names)
    if place.size(MANIFEST) is not None:
        return _finished(place, key, workers)
    with connected("distributed.extract") as data:
        work = Extraction(place, key, on_cpu(backbone), dtype, workers.device)
        report = pass_rows(data, rows, columns, work, workers)
    if not report.num_rows:
        raise ValueError(
            f"{place}: expected rows with features, got none; {len(report.left_out)} were left out"
        )
    Features.commit(store, key=key, num_rows=report.num_rows, feature_names=names)
    return report


@dataclass
class Extraction(Work):
    """Features of batches, written as parts of a store."""

    place: Place
    key: str
    backbone: nn.Module | None
    dtype: torch.dtype | None
    device: str

    def open(self) -> None:
        if self.backbone is not None:
            self.backbone.to(self.device)

    @torch.no_grad()
    def compute(self, inputs: Any, ids: Sequence[int | str]) -> Tensor:
        return features_on_cpu(self.backbone, inputs).to(self.dtype)

    def write(self, part: str, ids: Ids, results: Sequence[Tensor], targets: Tensor | None) -> None:
        PartWriter(self.place, key=self.key).write(part, torch.cat(list(results)), targets, row_ids=ids)

    def read_ids(self, part: WrittenPart) -> Ids:
        return read_ids(self.place, part)


def features_on_cpu(backbone: nn.Module | None, inputs: Any) -> Tensor:
    """Features of a batch, wherever the backbone computes them."""
    if backbone is None:
        return compute_features(None, inputs).cpu()
    with frozen(backbone):
        return compute_features(backbone, inputs).cpu()


def on_cpu(network: nn.Module | None) -> nn.Module | None:
    """A network that can go to another machine."""
    is_there = network is None or all(part.device.type == "cpu" for part in network.parameters())
    return network if is_there else copy.deepcopy(network).cpu()  # type: ignore[union-attr]


def _finished(place: Place, key: str, workers: Workers) -> RowsReport:
    """The report of a store that was finished before."""
    manifest = read_manifest(place)
    if manifest["key"] != key:
        raise ValueError(
            f"{place}: expected a new store, or one of the key {key[:12]}..., got {str(manifest['key'])[:12]}...: it is of another "
            "backbone, other columns or another type; choose another folder"
        )
    left_out = rows_left_out(place, workers.retries)
    return RowsReport(str(place), manifest["num_rows"], 0, manifest["num_rows"], tuple(left_out))
