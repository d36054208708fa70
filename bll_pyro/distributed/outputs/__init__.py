"""Last layers whose outputs are spread over ranks, for so many classes that one process cannot hold the weights."""

from bll_pyro.distributed.outputs.layer import OutputShards
from bll_pyro.distributed.outputs.prediction import ShardedPrediction
from bll_pyro.distributed.outputs.training import fit_outputs

__all__ = ["OutputShards", "ShardedPrediction", "fit_outputs"]
