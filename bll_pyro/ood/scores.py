"""Scores of the prediction, the posterior of the outputs or the features, without training rows.

===================== ============================================ ===================================
score                 formula                                      source
===================== ============================================ ===================================
``Epistemic``         mutual information, or ``Var(E[y | f])``     Depeweg et al. 2018
``PredictiveEntropy`` ``H(E[p])``                                  entropy of the averaged prediction
``MaxProbability``    ``1 - max_k p_k``                            Hendrycks and Gimpel 2017
``Energy``            ``-T log sum_k exp(m_k / T)``                Liu et al. 2020
``Leverage``          ``mean_k log Var(f_k) - 2 log |h|``        Hoaglin and Welsch 1978, ``h' V h``
``FeatureNorm``       ``-sum_d |h_d|``                             Huang, Geng and Li 2021; Yu et al. 2023
===================== ============================================ ===================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import positive, switch
from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.coordinates import lengths
from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction


@dataclass(frozen=True, eq=False)
class Epistemic(Score):
    """Epistemic uncertainty: mutual information in nats, or the variance of ``E[y | f]``.

    Summed over the labels, or the standardised targets, of a row.
    """

    def of(self, view: View) -> Float[Tensor, " N"]:
        prediction = view.prediction
        values = prediction.epistemic
        if isinstance(prediction, ValuePrediction) and values.dim() > 1:
            values = values / prediction.mixture.spread.square()
        return _row(values)


@dataclass(frozen=True, eq=False)
class PredictiveEntropy(Score):
    """Entropy of the averaged prediction in nats, summed over the labels of a row."""

    def of(self, view: View) -> Float[Tensor, " N"]:
        if not isinstance(view.prediction, ClassPrediction | LabelPrediction):
            raise view.refuse(self, "classes or labels", "use Epistemic() or Leverage()")
        return _row(view.prediction.total)


@dataclass(frozen=True, eq=False)
class MaxProbability(Score):
    """One minus the probability of the most probable class; the largest of several labels."""

    def of(self, view: View) -> Float[Tensor, " N"]:
        prediction = view.prediction
        if isinstance(prediction, ClassPrediction):
            # the sum of the other probabilities is more precise than 1 - max near 0
            return prediction.probs.sort(-1, descending=True).values[:, 1:].sum(-1)
        if isinstance(prediction, LabelPrediction):
            complement = torch.minimum(prediction.probs, 1 - prediction.probs)
            return complement if complement.dim() == 1 else complement.amax(-1)
        raise view.refuse(self, "classes or labels", "use Epistemic() or Leverage()")


@dataclass(frozen=True, eq=False)
class Energy(Score):
    """Free energy of the mean outputs m.

    Parameters
    ----------
    temperature
        T of the formula, a positive number; it is not the temperature of the likelihood.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature", "Energy")

    def of(self, view: View) -> Float[Tensor, " N"]:
        if not isinstance(view.posterior.layer.likelihood, Categorical):
            raise view.refuse(self, "the Categorical likelihood", "use Leverage() or Epistemic()")
        return -self.temperature * (view.outputs.mean / self.temperature).logsumexp(-1)


@dataclass(frozen=True, eq=False)
class Leverage(Score):
    """Log of the geometric mean, over the outputs, of the posterior variance ``h' V_k h``, for features of unit length.

    With one output and Gaussian noise ``normalize=False`` gives the log of the classical leverage ``h' (H'H + c)^-1 h``, up to a
    constant. It measures the distance of the features from those of the training rows, not the ambiguity between classes.
    The variance grows with the square of the features, so unknown rows with small features, as many networks give them, would
    seem better known than any; ``h' V_k h / |h|^2`` compares directions.

    Parameters
    ----------
    normalize
        Whether the variance is divided by the squared length of the features (:mod:`bll_pyro.ood.coordinates`). A row of zeros
        then counts as infinitely short, and its score is larger than any other.
    """

    normalize: bool = True
    absent: ClassVar[dict[str, Any]] = {"normalize": False}

    def __post_init__(self) -> None:
        switch(self.normalize, "normalize", "Leverage")

    def of(self, view: View) -> Float[Tensor, " N"]:
        variance = view.outputs.variance
        # the variance of a point estimate is 0; the lower bound avoids infinite scores
        logs = variance.clamp_min(torch.finfo(variance.dtype).tiny).log().mean(-1)
        return logs - 2 * lengths(view.posterior, view.features)[:, 0].log() if self.normalize else logs


@dataclass(frozen=True, eq=False)
class FeatureNorm(Score):
    """Minus the 1-norm of the backbone's features, before standardisation.

    Classification networks often have larger features for inputs like those of training (the first factor of the gradient
    norm of Huang, Geng and Li; Yu et al. 2023). This is not true of every network, so test it on yours: for some, unknown
    inputs have the larger features. :class:`bll_pyro.ood.Length` looks both ways.
    """

    def of(self, view: View) -> Float[Tensor, " N"]:
        return -view.features.abs().sum(-1)


def _row(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.sum(-1)
