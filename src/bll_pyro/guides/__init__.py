"""Guides: variational families over the weights. A new member is one file here and one line below."""

from bll_pyro.guides.base import GaussianGuide, Guide, Start
from bll_pyro.guides.diagonal import Diagonal
from bll_pyro.guides.full_rank import FullRank
from bll_pyro.guides.map import MAP

__all__ = ["MAP", "Diagonal", "FullRank", "GaussianGuide", "Guide", "Start"]
