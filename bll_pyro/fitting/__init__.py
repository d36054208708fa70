"""``fit()`` and ``Fit``: the one entry, the one result."""

from bll_pyro.fitting.calibration import AUTOMATIC
from bll_pyro.fitting.entry import fit, fit_features
from bll_pyro.fitting.loading import load
from bll_pyro.fitting.result import Fit

__all__ = ["AUTOMATIC", "Fit", "fit", "fit_features", "load"]
