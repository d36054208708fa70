"""Work that several processes share: fits whose rows are spread over ranks, and last layers whose outputs are.

``bll.fit(layer, rows_of_this_rank, ranks=ranks)`` takes :class:`Ranks`.
"""

from bll_pyro.distributed.joining import join_predictions
from bll_pyro.distributed.outputs import OutputShards, ShardedPrediction, fit_outputs
from bll_pyro.ranks import RankError, Ranks

__all__ = ["OutputShards", "RankError", "Ranks", "ShardedPrediction", "fit_outputs", "join_predictions"]
