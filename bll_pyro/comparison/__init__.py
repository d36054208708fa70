"""Fits compared by leave-one-out, and stacked; declarations chosen by it, or recommended by the size of the data."""

from bll_pyro.comparison.choice import Choice, choose
from bll_pyro.comparison.ranking import Comparison, compare
from bll_pyro.comparison.recommendation import Recommendation, recommend
from bll_pyro.comparison.stack import Stack

__all__ = ["Choice", "Comparison", "Recommendation", "Stack", "choose", "compare", "recommend"]
