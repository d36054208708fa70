"""Comparison of fits by leave-one-out, with standard errors; the choice of a declaration; their stack."""

from bll_pyro.comparison.choice import Choice, choose
from bll_pyro.comparison.ranking import Comparison, compare
from bll_pyro.comparison.stack import Stack

__all__ = ["Choice", "Comparison", "Stack", "choose", "compare"]
