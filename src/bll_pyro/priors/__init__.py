"""Priors of the weight. A new member is one file here and one line below."""

from bll_pyro.priors.base import GaussianPrior, Prior
from bll_pyro.priors.laplace import Laplace
from bll_pyro.priors.normal import Normal
from bll_pyro.priors.posterior import Posterior

__all__ = ["GaussianPrior", "Laplace", "Normal", "Posterior", "Prior"]
