"""Priors of the weight. A new member is one file here and one line below."""

from bll_pyro.priors.base import GaussianPrior, Prior, ScaleMixturePrior
from bll_pyro.priors.distribution import Distribution
from bll_pyro.priors.hierarchical_normal import HierarchicalNormal
from bll_pyro.priors.horseshoe import Horseshoe
from bll_pyro.priors.laplace import Laplace
from bll_pyro.priors.normal import Normal
from bll_pyro.priors.posterior import Posterior
from bll_pyro.priors.spike_and_slab import SpikeAndSlab
from bll_pyro.priors.student_t import StudentT

__all__ = [
    "Distribution",
    "GaussianPrior",
    "HierarchicalNormal",
    "Horseshoe",
    "Laplace",
    "Normal",
    "Posterior",
    "Prior",
    "ScaleMixturePrior",
    "SpikeAndSlab",
    "StudentT",
]
