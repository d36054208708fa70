"""Likelihoods of the targets. A new member is one file here and one line below."""

from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.bernoulli import Bernoulli
from bll_pyro.likelihoods.categorical import Categorical
from bll_pyro.likelihoods.gaussian import Gaussian
from bll_pyro.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian
from bll_pyro.likelihoods.multivariate_gaussian import MultivariateGaussian
from bll_pyro.likelihoods.negative_binomial import NegativeBinomial
from bll_pyro.likelihoods.ordinal import Ordinal
from bll_pyro.likelihoods.poisson import Poisson
from bll_pyro.likelihoods.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "MultivariateGaussian",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
]
