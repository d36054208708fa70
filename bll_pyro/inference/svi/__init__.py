"""Stochastic variational inference, on frozen features and with the backbone trained along."""

from bll_pyro.inference.svi.svi import SVI

__all__ = ["SVI"]
