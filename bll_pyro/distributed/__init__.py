"""Work that several processes share: fits whose rows are spread over ranks, and last layers whose outputs are.

``bll.fit(layer, rows_of_this_rank, ranks=ranks)`` takes :class:`Ranks`. On Ray Data: :func:`extract`, :func:`predict` and
:func:`statistics`. Names are loaded when they are first used: a worker of Ray needs few of them, and starts in a part of the time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLACES = {
    "OutputShards": "distributed.outputs",
    "RankError": "ranks",
    "Ranks": "ranks",
    "RowsReport": "distributed.on_ray.report",
    "ShardedPrediction": "distributed.outputs",
    "Workers": "distributed.on_ray.workers",
    "extract": "distributed.on_ray.extraction",
    "fit_outputs": "distributed.outputs",
    "fit_statistics": "distributed.on_ray.sums",
    "join_predictions": "distributed.joining",
    "predict": "distributed.on_ray.scoring",
    "statistics": "distributed.on_ray.sums",
}

if TYPE_CHECKING:
    from bll_pyro.distributed.joining import join_predictions
    from bll_pyro.distributed.on_ray.extraction import extract
    from bll_pyro.distributed.on_ray.report import RowsReport
    from bll_pyro.distributed.on_ray.scoring import predict
    from bll_pyro.distributed.on_ray.sums import fit_statistics, statistics
    from bll_pyro.distributed.on_ray.workers import Workers
    from bll_pyro.distributed.outputs import OutputShards, ShardedPrediction, fit_outputs
    from bll_pyro.ranks import RankError, Ranks

__all__ = [
    "OutputShards",
    "RankError",
    "Ranks",
    "RowsReport",
    "ShardedPrediction",
    "Workers",
    "extract",
    "fit_outputs",
    "fit_statistics",
    "join_predictions",
    "predict",
    "statistics",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = globals()[name] = getattr(import_module(f"bll_pyro.{_PLACES[name]}"), name)
        return value
    raise AttributeError(f"module 'bll_pyro.distributed' has no attribute {name!r}")
