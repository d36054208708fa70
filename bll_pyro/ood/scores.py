"""Scores from the prediction and from the posterior of the outputs: they need no training rows.

===================== ============================================ ===================================
score                 formula                                      source
===================== ============================================ ===================================
``Epistemic``         mutual information, or ``Var(E[y | f])``     Depeweg et al. 2018
``PredictiveEntropy`` ``H(E[p])``                                  entropy of the averaged prediction
``MaxProbability``    ``1 - max_k p_k``                            Hendrycks and Gimpel 2017
``Energy``            ``-T log sum_k exp(m_k / T)``                Liu et al. 2020
``Leverage``          ``mean_k log Var(f_k)``                      Hoaglin and Welsch 1978, ``h' V h``
``FeatureNorm``       ``-sum_d |h_d|``                             Huang, Geng and Li 2021; Yu et al. 2023
===================== ============================================ ===================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction


@dataclass(frozen=True, eq=False)
class Epistemic(Score):
    """Uncertainty that more data would remove: mutual information (nats), or the variance of ``E[y | f]``.

    Several labels of a row are added up, and so are several values, each on its standardised scale.
    """

    def of(self, view: View) -> Tensor:
        prediction = view.prediction
        values = prediction.epistemic
        if isinstance(prediction, ValuePrediction) and values.dim() > 1:
            values = values / prediction.mixture.spread.square()
        return _row(values)


@dataclass(frozen=True, eq=False)
class PredictiveEntropy(Score):
    """Entropy of the averaged prediction in nats, the labels of a row added up."""

    def of(self, view: View) -> Tensor:
        if not isinstance(view.prediction, ClassPrediction | LabelPrediction):
            raise view.refuse(self, "classes or labels", "use Epistemic() or Leverage()")
        return _row(view.prediction.total)


@dataclass(frozen=True, eq=False)
class MaxProbability(Score):
    """One minus the probability of the most probable class, of several labels the largest."""

    def of(self, view: View) -> Tensor:
        prediction = view.prediction
        if isinstance(prediction, ClassPrediction):
            # the sum of the others keeps digits that 1 - max loses near certainty
            return prediction.probs.sort(-1, descending=True).values[:, 1:].sum(-1)
        if isinstance(prediction, LabelPrediction):
            doubt = torch.minimum(prediction.probs, 1 - prediction.probs)
            return doubt if doubt.dim() == 1 else doubt.amax(-1)
        raise view.refuse(self, "classes or labels", "use Epistemic() or Leverage()")


@dataclass(frozen=True, eq=False)
class Energy(Score):
    """Free energy of the mean outputs m.

    Parameters
    ----------
    temperature
        The T of the formula: of this score alone.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < float("inf")):
            raise ValueError(f"Energy(temperature=...): expected a positive number, got {self.temperature!r}")

    def of(self, view: View) -> Tensor:
        if not isinstance(view.posterior.layer.likelihood, Categorical):
            raise view.refuse(self, "the Categorical likelihood", "use Leverage() or Epistemic()")
        return -self.temperature * (view.outputs.mean / self.temperature).logsumexp(-1)


@dataclass(frozen=True, eq=False)
class Leverage(Score):
    """Variance of the outputs under the posterior, ``h' V_k h``: the log of its geometric mean over the outputs.

    The classical leverage ``h' (H'H + c)^-1 h`` is the case of one output with Gaussian noise. It sees how far features lie
    from those of training in directions that training pinned down, and not how the classes compete.
    """

    def of(self, view: View) -> Tensor:
        variance = view.outputs.variance
        # of a point estimate the variance is 0, and of a score that is infinite for every row nothing can be learned
        return variance.clamp_min(torch.finfo(variance.dtype).tiny).log().mean(-1)


@dataclass(frozen=True, eq=False)
class FeatureNorm(Score):
    """How little the backbone found: minus the 1-norm of the features, as it gave them.

    A network trained to tell classes apart answers what it knows with large features; an image that has nothing of what it
    looks for leaves them small (the first factor of Huang, Geng and Li's gradient norm; Yu et al. 2023). Whether a given
    network is of this kind has to be tried: there are some whose unknown inputs have the larger features.
    """

    def of(self, view: View) -> Tensor:
        return -view.features.abs().sum(-1)


def _row(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.sum(-1)
