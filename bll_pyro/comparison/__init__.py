"""Which of several fits predicts best, by how much, how sure that is, and what they are worth together."""

from bll_pyro.comparison.ranking import Comparison, compare
from bll_pyro.comparison.stack import Stack

__all__ = ["Comparison", "Stack", "compare"]
