"""Deployment: a fit as a plain torch module."""

from bll_pyro.export.module import PredictiveModule, as_module

__all__ = ["PredictiveModule", "as_module"]
