"""Comparison of fits by leave-one-out, with standard errors, and their stack."""

from bll_pyro.comparison.ranking import Comparison, compare
from bll_pyro.comparison.stack import Stack

__all__ = ["Comparison", "Stack", "compare"]
