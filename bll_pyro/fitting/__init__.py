"""``fit()`` and ``Fit``: the one entry, the one result; and the ways to it from a loop of the user's."""

from bll_pyro.fitting.calibration import AUTOMATIC
from bll_pyro.fitting.draws import fit_from_draws
from bll_pyro.fitting.elbo import ELBO
from bll_pyro.fitting.entry import fit
from bll_pyro.fitting.loading import load
from bll_pyro.fitting.result import Fit
from bll_pyro.fitting.stages import fit_features

__all__ = ["AUTOMATIC", "ELBO", "Fit", "fit", "fit_features", "fit_from_draws", "load"]
