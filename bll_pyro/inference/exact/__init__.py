"""Exact inference of the linear Gaussian model: sums over the rows, closed forms, and what is done with unknown noise."""

from bll_pyro.inference.exact.exact import Exact

__all__ = ["Exact"]
