"""Inferences: from declaration and rows to a posterior, one a chapter."""

from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.exact import noises
from bll_pyro.inference.exact.exact import Exact
from bll_pyro.inference.laplace.laplace import Laplace
from bll_pyro.inference.nuts.nuts import NUTS
from bll_pyro.inference.own_loop import OwnLoop as OwnLoop  # known where a fit is loaded
from bll_pyro.inference.prior_scale import criteria
from bll_pyro.inference.svi.svi import SVI

__all__ = ["NUTS", "SVI", "Exact", "Inference", "Laplace", "Trace", "criteria", "noises"]
