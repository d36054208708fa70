"""``LastLayer``: the declaration of a Bayesian last layer, prior x likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bll_pyro.declaration import Declaration
from bll_pyro.likelihoods import Likelihood
from bll_pyro.priors import Normal, Prior
from bll_pyro.priors.base import positive


@dataclass(frozen=True, eq=False)
class LastLayer(Declaration):
    """Outputs ``f = W h + b`` of features ``h``, with a prior on W and b and a likelihood of the target given f.

    Parameters
    ----------
    likelihood
        Distribution of the target given the outputs.
    prior
        Prior of the weight ``W [K, D]``; by default Normal with a learned scale.
    bias
        Whether there is a bias ``b [K]``, with the prior ``Normal(0, bias_scale)``.
    bias_scale
        Standard deviation of the bias; wide by default.
    standardize
        Bring features, and the targets of real-valued likelihoods, to mean 0 and scale 1 with the constants of the
        training set. Weights and priors live on that scale; predictions are in the user's units.
    """

    likelihood: Likelihood
    prior: Prior = Normal()
    bias: bool = True
    bias_scale: float = 10.0
    standardize: bool = True
    family: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood):
            raise TypeError(
                f"LastLayer(likelihood=...): expected a likelihood such as bll.likelihoods.Categorical(num_classes=10), "
                f"got {self.likelihood!r}"
            )
        if not isinstance(self.prior, Prior):
            raise TypeError(
                f"LastLayer(prior=...): expected a prior such as bll.priors.Normal(scale=1.0), got {self.prior!r}; "
                "a Pyro distribution goes into bll.priors.Distribution"
            )
        positive(self.bias_scale, "bias_scale", "LastLayer")
        for name in ("bias", "standardize"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"LastLayer({name}=...): expected True or False, got {getattr(self, name)!r}")
