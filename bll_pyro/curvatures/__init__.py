"""Curvatures for the Laplace approximation. A new member is one file here and one line below."""

from bll_pyro.curvatures.base import Curvature, Precision
from bll_pyro.curvatures.diagonal import Diagonal
from bll_pyro.curvatures.full import Full
from bll_pyro.curvatures.kronecker import Kronecker

__all__ = ["Curvature", "Diagonal", "Full", "Kronecker", "Precision"]
