"""Work that several processes share: fits whose rows are spread over ranks, and last layers whose outputs are.

``bll.fit(layer, rows_of_this_rank, ranks=ranks)`` takes :class:`Ranks`. On Ray Data: :func:`extract`, :func:`predict` and
:func:`statistics`.
"""

from bll_pyro.distributed.joining import join_predictions
from bll_pyro.distributed.on_ray import RowsReport, Workers, extract, fit_statistics, predict, statistics
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
