"""Likelihoods of the targets. A new member is one file here and one line below."""

from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.categorical import Categorical
from bll_pyro.likelihoods.gaussian import Gaussian

__all__ = ["Categorical", "Gaussian", "Likelihood"]
