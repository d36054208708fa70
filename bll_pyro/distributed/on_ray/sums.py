"""``statistics``: the sums over the rows of a data set of Ray Data that an exact fit needs, and the fit of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.extraction import features_on_cpu, on_cpu
from bll_pyro.distributed.on_ray.passing import dataset_of, through_actors
from bll_pyro.distributed.on_ray.work import pickled
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.fitting.from_sums import fit_from_sums
from bll_pyro.fitting.result import Fit
from bll_pyro.inference import Exact, Inference
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.layer import LastLayer
from bll_pyro.observation import call, stage
from bll_pyro.ray_environment import connected
from bll_pyro.shards.ids import first_ids


@call("statistics")
def statistics(
    rows: Any,
    backbone: nn.Module | None = None,
    *,
    inputs: str | Sequence[str] = "inputs",
    targets: str = "targets",
    row_id: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    workers: Workers | None = None,
) -> SufficientStatistics:
    """Sum over all rows of a data set on Ray, in one pass and without a store: what :func:`fit_statistics` needs.

    Each block is summed in float64 where it is, and the driver adds the sums of blocks in the order of the data: the same numbers
    in each call. A worker or machine that dies is replaced, and its blocks are summed again.

    Parameters
    ----------
    rows, inputs, transform, workers
        As in :func:`extract`. A block of ``rows_per_part`` rows comes to the driver as ``8 D^2`` bytes, so take several times D.
        There is no time-out: sums of some rows would not be those of all.
    backbone
        A module that maps a batch of inputs to features ``[n, D]``; None if the inputs are features already.
    targets
        Column of the targets, numbers or lists of T numbers.
    row_id
        Column of ids, by which rows are named in errors; None for none.

    Raises
    ------
    ValueError
        If a column is missing, or features or targets are not finite.
    ModuleNotFoundError
        Without Ray.
    """
    workers = Workers() if workers is None else workers
    columns = RowColumns.of(inputs, row_id=row_id, targets=targets, transform=transform)
    given = SumsAssignment(on_cpu(backbone), columns, workers)
    total: SufficientStatistics | None = None
    with (
        connected("distributed.statistics") as data,
        stage("rows", rows_per_step=1) as done,
        through_actors(dataset_of(data, rows, columns), SumsWorker, given, workers) as outcomes,
    ):
        for row in outcomes:
            found = pickle.loads(row["found"])
            if isinstance(found, Exception):
                raise found
            if found is not None:
                total = found if total is None else total + found
                done.advance(found.num_rows)
    if total is None:
        raise ValueError("statistics: expected at least one row, got none; check the data")
    return total


def fit_statistics(
    layer: LastLayer,
    sums: SufficientStatistics,
    *,
    inference: Inference | None = None,
    backbone: nn.Module | None = None,
    feature_names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Fit:
    """The exact fit of rows of which only the sums are there; equal to that of a store of the same features.

    Parameters
    ----------
    layer
        The declaration: ``likelihoods.Gaussian`` and ``priors.Normal``.
    sums
        Of :func:`statistics`; those of several data sets may be added first, ``a + b``.
    inference
        ``bll.Exact()``, the default, with its treatment of the noise.
    backbone
        The one that the features came from, for later predictions from inputs.
    feature_names
        Names of the columns of inputs, where each is a feature.
    dtype
        Type of the features, in which predictions compute.
    seed
        Kept with the fit.

    Raises
    ------
    ValueError
        If the inference or the layer needs more of the rows than their sums.
    """
    names = None if feature_names is None else tuple(feature_names)
    chosen = Exact() if inference is None else inference
    return fit_from_sums(layer, sums, chosen, backbone, names, dtype, seed)


@dataclass(frozen=True)
class SumsAssignment:
    """What an actor needs to know."""

    backbone: nn.Module | None
    columns: RowColumns
    workers: Workers


class SumsWorker:
    """The actor: gives the sums of each block, or the exception of one, as a pickle in the column ``found``."""

    def __init__(self, reference: list[Any]) -> None:
        import ray

        self.given: SumsAssignment = ray.get(reference[0])
        torch.set_num_threads(max(int(self.given.workers.num_cpus), 1))
        if self.given.backbone is not None:
            self.given.backbone.to(self.given.workers.device)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        num_rows = len(next(iter(block.values()), ()))
        try:
            found = pickle.dumps(self._sums(block, num_rows) if num_rows else None)
        except (ValueError, TypeError, RuntimeError) as problem:
            found = pickled(problem)
        return {"found": [found]}

    @torch.no_grad()
    def _sums(self, block: dict[str, np.ndarray], num_rows: int) -> SufficientStatistics:
        columns, size = self.given.columns, self.given.workers.batch_size
        columns.check(block)
        ids = None if columns.row_id is None else columns.ids_of(block)
        features = torch.cat([self._features(block, at, size) for at in range(0, num_rows, size)])
        wrong = (~torch.isfinite(features)).any(1).nonzero()[:, 0].numpy()
        if len(wrong):
            named = "" if ids is None else f", with the ids {first_ids(np.asarray(ids)[wrong].tolist())}"
            raise ValueError(
                f"rows: expected finite features, got {len(wrong)} rows with NaN or infinite ones{named}; leave these rows out, or "
                "check their inputs and the backbone"
            )
        targets = columns.targets_of(block, slice(None), ids)
        assert targets is not None
        return SufficientStatistics.of(features, targets.reshape(num_rows, -1))

    def _features(self, block: dict[str, np.ndarray], start: int, size: int) -> torch.Tensor:
        return features_on_cpu(
            self.given.backbone, self.given.columns.inputs_of(block, slice(start, start + size))
        )
