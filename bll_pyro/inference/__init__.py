"""Inferences: from declaration and rows to a posterior, one a file."""

from bll_pyro.inference import criteria, noises
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.exact import Exact
from bll_pyro.inference.laplace import Laplace
from bll_pyro.inference.nuts import NUTS
from bll_pyro.inference.svi import SVI

__all__ = ["NUTS", "SVI", "Exact", "Inference", "Laplace", "Trace", "criteria", "noises"]
