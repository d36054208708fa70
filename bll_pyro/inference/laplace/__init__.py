"""Laplace's approximation: the posterior mode, the curvature at the mode, and the evidence that they imply."""

from bll_pyro.inference.laplace.laplace import Laplace

__all__ = ["Laplace"]
