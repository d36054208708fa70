"""Guides: variational families over the weights. A new member is one file here and one line below."""

from bll_pyro.guides.base import GaussianGuide, Guide, Start
from bll_pyro.guides.block_diagonal import BlockDiagonal
from bll_pyro.guides.custom import Custom
from bll_pyro.guides.diagonal import Diagonal
from bll_pyro.guides.flow import Flow, InverseAutoregressive, Spline
from bll_pyro.guides.full_rank import FullRank
from bll_pyro.guides.low_rank import LowRank
from bll_pyro.guides.map import MAP
from bll_pyro.guides.matrix_normal import MatrixNormal

__all__ = [
    "MAP",
    "BlockDiagonal",
    "Custom",
    "Diagonal",
    "Flow",
    "FullRank",
    "GaussianGuide",
    "Guide",
    "InverseAutoregressive",
    "LowRank",
    "MatrixNormal",
    "Spline",
    "Start",
]
