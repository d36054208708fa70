"""The score of a detector that is declared without one."""

from __future__ import annotations

from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.distances import Mahalanobis
from bll_pyro.ood.fisher import Fisher, HarmonicMean
from bll_pyro.ood.neighbours import KNearestNeighbours
from bll_pyro.ood.scores import Energy, Epistemic, Leverage, PredictiveEntropy


def default_score(view: View) -> Fisher | HarmonicMean:
    """The scores that have a meaning for the fit of a view of some known rows, joined by their p-values.

    ============================== ====================== =======================================================
    score                          for                    what it sees
    ============================== ====================== =======================================================
    Mahalanobis                    every fit              directions that no class has
    KNearestNeighbours             every fit              directions away from every training row
    Mahalanobis, not normalised    every fit              sizes: a table row far out along a direction of its own
    Leverage                       posteriors that spread directions in which the weights are uncertain
    Energy                         ``Categorical``        rows that no class claims
    PredictiveEntropy              ``Categorical``        rows that several classes claim
    Epistemic                      ``Categorical`` whose  rows on which weights of the posterior disagree
                                   posterior spreads
    ============================== ====================== =======================================================

    The first four judge features and the others predictions. Where there are both, they are two groups of equal weight
    (:class:`HarmonicMean`): an input may be strange to one and not to the other.
    """
    spreads = bool((view.outputs.variance > 0).any())  # a point estimate (MAP) does not
    of_features: list[Score] = [Mahalanobis(), KNearestNeighbours(), Mahalanobis(normalize=False)]
    if spreads:
        of_features.append(Leverage())
    features = Fisher(tuple(of_features))
    if not isinstance(view.posterior.layer.likelihood, Categorical):
        return features
    of_predictions: list[Score] = [Energy(), PredictiveEntropy()]
    if spreads:
        of_predictions.append(Epistemic())
    return HarmonicMean((features, Fisher(tuple(of_predictions))))
