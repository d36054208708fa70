"""Deployment: a fit as a plain torch module, and as a graph in a file."""

from bll_pyro.export.graph import graph_bytes, write_graph
from bll_pyro.export.module import PredictiveModule, as_module

__all__ = ["PredictiveModule", "as_module", "graph_bytes", "write_graph"]
