"""Predictions of an exported model, with numpy and onnxruntime alone: neither torch nor Pyro nor the rest of the library."""

from bll_pyro.runtime.loading import load
from bll_pyro.runtime.predictor import Predictor
from bll_pyro.runtime.seal import Altered

__all__ = ["Altered", "Predictor", "load"]
