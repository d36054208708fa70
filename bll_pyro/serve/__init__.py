"""A fit as a service over HTTP: :func:`application` is the ASGI application, :func:`serve` runs it with uvicorn.

It needs the extra ``bll-pyro[serve]``.
"""

from bll_pyro.serve.app import application
from bll_pyro.serve.models import ServedModel, of_fit, of_graph, open_model
from bll_pyro.serve.server import Binding, serve
from bll_pyro.serve.settings import ServiceSettings

__all__ = [
    "Binding",
    "ServedModel",
    "ServiceSettings",
    "application",
    "of_fit",
    "of_graph",
    "open_model",
    "serve",
]
