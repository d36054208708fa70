"""A fit as a service over HTTP: :func:`application` is the ASGI application, :func:`serve` runs it with uvicorn.

It needs the extra ``bll-pyro[serve]``.
"""

from bll_pyro.serve.app import application
from bll_pyro.serve.models import Model, load, of_fit, of_graph
from bll_pyro.serve.server import Binding, serve
from bll_pyro.serve.settings import Settings

__all__ = ["Binding", "Model", "Settings", "application", "load", "of_fit", "of_graph", "serve"]
