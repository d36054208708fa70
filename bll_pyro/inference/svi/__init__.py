"""Stochastic variational inference, on frozen features and with the backbone trained along."""

from bll_pyro.inference.svi.backbone_training import BackboneTraining
from bll_pyro.inference.svi.imported import Imported
from bll_pyro.inference.svi.svi import SVI

__all__ = ["SVI", "BackboneTraining", "Imported"]
