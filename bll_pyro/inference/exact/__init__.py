"""Exact inference of the linear Gaussian model: sums over the rows, closed forms, treatments of an unknown noise scale."""

from bll_pyro.inference.exact.exact import Exact

__all__ = ["Exact"]
